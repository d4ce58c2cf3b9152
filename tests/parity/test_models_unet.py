"""The UNet compared with the reference's, in the configs of every supported family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal, share_weights
from diffusers import UNet2DConditionModel as TheirUNet
from published_configs import UNETS
from tiny_checkpoints import randomised
from torch import Tensor

from retouch.models.unet import UNet2DConditionModel

pytestmark = pytest.mark.usefixtures("no_gradients")

TEXT_WIDTH, POOLED_WIDTH, SIZE_WIDTH = 12, 10, 8

SD_1 = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 4,
}
SDXL = SD_1 | {
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2, 3),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_WIDTH,
    "projection_class_embeddings_input_dim": 6 * SIZE_WIDTH + POOLED_WIDTH,
}
REFINER = SDXL | {
    "block_out_channels": (8, 16, 24, 24),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2, 3, 3),
    "transformer_layers_per_block": 2,
    "projection_class_embeddings_input_dim": 5 * SIZE_WIDTH + POOLED_WIDTH,
}
KANDINSKY = SD_1 | {
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 2,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 2),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 2, "ResnetUpsampleBlock2D"),
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": POOLED_WIDTH,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD 1": SD_1,
    "SD 1 inpainting": SD_1 | {"in_channels": 9},
    "SD 2": SD_1 | {"attention_head_dim": (1, 2, 4), "use_linear_projection": True, "upcast_attention": True},
    "SDXL base": SDXL,
    "SDXL inpainting": SDXL | {"in_channels": 9},
    "SDXL refiner": REFINER,
    "Kandinsky 2.2": KANDINSKY,
    "Kandinsky 2.2 inpainting": KANDINSKY | {"in_channels": 9},
    "LCM": SD_1 | {"time_cond_proj_dim": 6},
    "no middle": SD_1 | {"mid_block_type": None},
    "each level its own": SD_1
    | {
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (2, 1, 1),
        "cross_attention_dim": (TEXT_WIDTH,) * 3,
        "only_cross_attention": (True, False, True),
    },
    "other constants": SD_1
    | {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 0.1},
}


def pair(settings: dict[str, Any]) -> tuple[UNet2DConditionModel, Any]:
    ours, theirs = UNet2DConditionModel(**settings).eval(), randomised(TheirUNet(**settings))
    share_weights(ours, theirs)
    return ours, theirs


def inputs(
    settings: dict[str, Any], *, batch: int = 2, size: tuple[int, int] = (8, 8), text_length: int = 7
) -> dict[str, Any]:
    given: dict[str, Any] = {
        "sample": torch.randn(batch, settings.get("in_channels", 4), *size),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": torch.randn(batch, text_length, TEXT_WIDTH),
    }
    if "time_cond_proj_dim" in settings:
        given["timestep_cond"] = torch.randn(batch, settings["time_cond_proj_dim"])
    if settings.get("addition_embed_type") == "image":
        given |= {"encoder_hidden_states": None}
        given["added_cond_kwargs"] = {"image_embeds": torch.randn(batch, POOLED_WIDTH)}
    elif "addition_embed_type" in settings:
        ids = (settings["projection_class_embeddings_input_dim"] - POOLED_WIDTH) // SIZE_WIDTH
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, POOLED_WIDTH),
            "time_ids": torch.randint(0, 1024, (batch, ids)).float(),
        }
    return given


def cast(given: Any, dtype: torch.dtype) -> Any:
    if isinstance(given, dict):
        return {key: cast(value, dtype) for key, value in given.items()}
    return given.to(dtype) if given is not None and given.is_floating_point() else given


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family(settings: dict[str, Any]) -> None:
    ours, theirs = pair(settings)
    given = inputs(settings)
    assert_close(ours(**given).sample, lambda: theirs(**given).sample)


@pytest.mark.parametrize("family", ["SD 1", "SDXL refiner"])
@pytest.mark.parametrize("size", [(13, 9), (8, 24), (5, 5), (1, 3)])
def test_any_latent_size(family: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(FAMILIES[family])
    given = inputs(FAMILIES[family], size=size)
    assert_close(ours(**given).sample, lambda: theirs(**given).sample)


@pytest.mark.parametrize("text_length", [1, 77, 154])
def test_any_text_length(text_length: int) -> None:
    ours, theirs = pair(SD_1)
    given = inputs(SD_1, text_length=text_length)
    assert_close(ours(**given).sample, lambda: theirs(**given).sample)


@pytest.mark.parametrize(
    "timestep", [999, 12.25, torch.tensor(0), torch.tensor([7.5]), torch.tensor([0, 999])], ids=str
)
def test_any_kind_of_timestep(timestep: Tensor | float) -> None:
    ours, theirs = pair(SD_1)
    given = inputs(SD_1) | {"timestep": timestep}
    assert_close(ours(**given).sample, lambda: theirs(**given).sample)


@pytest.mark.parametrize("family", ["SD 1 inpainting", "SDXL base"])
@pytest.mark.parametrize("size", [(8, 8), (13, 9)])
def test_control_residuals(family: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(FAMILIES[family])
    given = inputs(FAMILIES[family], size=size)
    shapes: list[torch.Size] = []
    hook = ours.mid_block.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    kept = [theirs.conv_in(given["sample"])]
    for block in theirs.down_blocks:
        block.register_forward_hook(lambda *call: kept.extend(call[-1][1]))
    plain = theirs(**given).sample
    ours(**given)
    hook.remove()
    residuals = {
        "down_block_additional_residuals": [torch.randn(tensor.shape) for tensor in kept],
        "mid_block_additional_residual": torch.randn(shapes[0]),
    }
    result = ours(**given, **residuals).sample
    assert_close(result, lambda: theirs(**given, **residuals).sample)
    assert (result - plain).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["SD 1", "SDXL base", "LCM", "Kandinsky 2.2"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    settings = FAMILIES[family]
    ours, theirs = pair(settings)
    exact = inputs(settings)
    full = theirs(**exact).sample
    given = cast(exact, dtype)
    result = ours.to(dtype)(**given).sample
    theirs.to(dtype)
    assert_close(result, lambda: theirs(**given).sample)
    assert (result.float() - full).abs().max() < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("family", ["SD 1", "SDXL base"])
def test_channels_last(family: str) -> None:
    ours, theirs = pair(FAMILIES[family])
    given = inputs(FAMILIES[family], size=(13, 9))
    other = given | {"sample": given["sample"].contiguous(memory_format=torch.channels_last)}
    result = ours.to(memory_format=torch.channels_last)(**other).sample
    assert_close(result, lambda: theirs(**given).sample)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
def test_published_configs_give_the_same_tensors(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = UNet2DConditionModel.from_config(config)
        theirs = TheirUNet.from_config(config)
    assert shapes(ours) == shapes(theirs)
    assert UNet2DConditionModel.config_class.from_dict(ours.config.to_dict()) == ours.config


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@torch.enable_grad()
def test_gradients() -> None:
    ours, theirs = pair(SDXL)
    given = inputs(SDXL)
    noise = torch.randn(2, 4, 8, 8)

    def gradients(model: Any) -> list[Tensor]:
        loss = torch.nn.functional.mse_loss(model.train()(**given).sample, noise)
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(loss, parameters.values())
        return [gradient for _, gradient in sorted(zip(parameters, found, strict=True))]

    assert_close(gradients(ours), lambda: gradients(theirs))


def test_a_copy_is_independent() -> None:
    ours, _ = pair(SD_1)
    given = inputs(SD_1)
    before = ours(**given).sample
    twin = copy.deepcopy(ours)
    assert_equal(twin(**given).sample, before)
    twin.conv_in.weight.data.zero_()
    assert_equal(ours(**given).sample, before)


def test_our_tuple_serves_both_conventions() -> None:
    ours, _ = pair(SD_1)
    given = inputs(SD_1)
    (alone,) = ours(**given, return_dict=False)
    assert_equal(alone, ours(**given).sample)
