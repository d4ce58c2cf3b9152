"""ControlNetModel and MultiControlNetModel compared with the reference's, alone and through files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close, assert_equal, share_weights
from published_configs import CONTROLNETS
from tiny_checkpoints import randomised, tiny_unet
from torch import Tensor

from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.models.controlnet import ControlNetModel, MultiControlNetModel
from retouch.models.unet import UNet2DConditionModel

pytestmark = pytest.mark.usefixtures("no_gradients")

TEXT_WIDTH, POOLED_WIDTH, SIZE_WIDTH = 12, 10, 8

SD_1: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 4,
    "conditioning_embedding_out_channels": (4, 6, 8, 8),
}
SDXL = SD_1 | {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": (1, 2, 3),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_WIDTH,
    "projection_class_embeddings_input_dim": 6 * SIZE_WIDTH + POOLED_WIDTH,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD 1": SD_1,
    "SD 2": SD_1 | {"attention_head_dim": (1, 2, 4), "use_linear_projection": True, "upcast_attention": True},
    "SDXL": SDXL,
    "SDXL small": SDXL | {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
    "pooled": SD_1 | {"global_pool_conditions": True},
    "bgr": SD_1 | {"controlnet_conditioning_channel_order": "bgr"},
    "other widths": SD_1
    | {"conditioning_channels": 2, "conditioning_embedding_out_channels": (2, 4, 6, 10), "in_channels": 5},
    "pixels of four": SD_1 | {"conditioning_embedding_out_channels": (8, 12, 16)},
}
SCALED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "scaled": {"conditioning_scale": 0.35},
    "guessing": {"guess_mode": True},
    "guessing, scaled": {"guess_mode": True, "conditioning_scale": 1.7},
}


def pair(settings: dict[str, Any]) -> tuple[ControlNetModel, Any]:
    ours, theirs = ControlNetModel(**settings).eval(), randomised(diffusers.ControlNetModel(**settings))
    share_weights(ours, theirs)
    return ours, theirs


def inputs(
    settings: dict[str, Any], *, batch: int = 2, size: tuple[int, int] = (8, 8), pictures: int | None = None
) -> dict[str, Any]:
    factor = 2 ** (len(settings["conditioning_embedding_out_channels"]) - 1)
    channels = settings.get("conditioning_channels", 3)
    cond = [torch.rand(batch, channels, *(side * factor for side in size)) for _ in range(pictures or 1)]
    given: dict[str, Any] = {
        "sample": torch.randn(batch, settings.get("in_channels", 4), *size),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": torch.randn(batch, 7, TEXT_WIDTH),
        "controlnet_cond": cond if pictures else cond[0],
    }
    if "addition_embed_type" in settings:
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, POOLED_WIDTH),
            "time_ids": torch.randint(0, 1024, (batch, 6)).float(),
        }
    return given


def joined(residuals: Any) -> Tensor:
    """Return all residuals of a net in one tensor, because some are too small to show anything alone."""
    down, mid = residuals
    return torch.cat([part.flatten() for part in (*down, mid)])


def assert_residuals_close(ours: Any, theirs: Callable[[], Any]) -> None:
    assert [part.shape for part in ours[0]] == [part.shape for part in theirs()[0]]
    assert_close(joined(ours), lambda: joined(theirs()))


@pytest.mark.parametrize("how", SCALED.values(), ids=SCALED.keys())
@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family(settings: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = pair(settings)
    given = inputs(settings)
    result = ours(**given, **how)
    assert_residuals_close(result, lambda: theirs(**given, **how, return_dict=False))
    assert_close(result.mid_block_res_sample, lambda: theirs(**given, **how).mid_block_res_sample)


@pytest.mark.parametrize("family", ["SD 1", "SDXL"])
@pytest.mark.parametrize("size", [(13, 9), (8, 24), (1, 3)])
def test_any_latent_size(family: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(FAMILIES[family])
    given = inputs(FAMILIES[family], size=size)
    assert_residuals_close(ours(**given), lambda: theirs(**given, return_dict=False))


@pytest.mark.parametrize("how", SCALED.values(), ids=SCALED.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, how: dict[str, Any]) -> None:
    ours, theirs = pair(SD_1)
    given = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs(SD_1).items()
    }
    mine = ours.to(dtype)(**given, **how)
    assert mine.mid_block_res_sample.dtype == dtype
    theirs.to(dtype)
    assert_residuals_close(mine, lambda: theirs(**given, **how, return_dict=False))


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("settings", [SD_1, SDXL], ids=["SD 1", "SDXL"])
def test_several_are_summed(settings: dict[str, Any], guess_mode: bool) -> None:
    pairs = [pair(settings) for _ in range(3)]
    ours = MultiControlNetModel([mine for mine, _ in pairs])
    theirs = diffusers.MultiControlNetModel([their for _, their in pairs])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    given = inputs(settings, pictures=3) | {"guess_mode": guess_mode}
    scales = [0.7, 0.0, 1.3]
    result = ours(**given, conditioning_scale=scales)
    assert_residuals_close(result, lambda: theirs(**given, conditioning_scale=scales, return_dict=False))
    off = ours(**given, conditioning_scale=[0.0] * 3)
    assert not any(part.any() for part in [*off.down_block_res_samples, off.mid_block_res_sample])


def test_a_net_that_is_switched_off_is_not_run() -> None:
    nets = [pair(SD_1)[0] for _ in range(2)]
    calls: list[int] = []
    for number, net in enumerate(nets):
        net.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    MultiControlNetModel(nets)(**inputs(SD_1, pictures=2), conditioning_scale=[0.0, 1.0])
    assert calls == [1]


def test_a_new_net_has_no_influence() -> None:
    down, mid = ControlNetModel(**SD_1)(**inputs(SD_1))
    assert len(down) == 1 + 3 + 3 + 2
    assert not any(part.any() for part in [*down, mid])


@pytest.mark.parametrize("config", CONTROLNETS.values(), ids=CONTROLNETS.keys())
def test_published_configs_give_the_same_tensors(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = ControlNetModel.from_config(config)
        theirs = diffusers.ControlNetModel.from_config(config)
    shapes = [{key: part.shape for key, part in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ControlNetModel.config_class.from_dict(ours.config.to_dict()) == ours.config


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("version", [1, 2])
def test_from_unet(version: int, order: str) -> None:
    theirs = tiny_unet(version=version)
    ours = UNet2DConditionModel.from_config(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    settings = {"conditioning_embedding_out_channels": (4, 6, 8, 8), "conditioning_channels": 1}
    net = ControlNetModel.from_unet(ours, order, **settings)
    reference = diffusers.ControlNetModel.from_unet(theirs, order, **settings)
    state = reference.state_dict()
    assert net.state_dict().keys() == state.keys()
    for key, value in net.state_dict().items():  # the picture's first layers start with random weights
        if not key.startswith("controlnet_cond_embedding") or "conv_out" in key:
            assert torch.equal(value, state[key]), key
    for key, value in net.config.to_dict().items():
        assert json.loads(json.dumps(reference.config[key])) == value, key
    fresh = ControlNetModel.from_unet(ours, load_weights_from_unet=False)
    assert not torch.equal(fresh.conv_in.weight, ours.conv_in.weight)


def test_from_another_kind_of_unet() -> None:
    unet = UNet2DConditionModel.from_config(tiny_unet().config)
    del unet.mid_block
    with pytest.raises(ConfigError, match=r"lacks \d+ tensors of a ControlNet's encoder, first mid_block"):
        ControlNetModel.from_unet(unet)


@pytest.mark.parametrize("settings", [SD_1, SDXL, FAMILIES["pooled"]], ids=["SD 1", "SDXL", "pooled"])
def test_files_both_ways(settings: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pair(settings)
    given = inputs(settings)
    ours.save_pretrained(tmp_path / "ours")
    again, report = diffusers.ControlNetModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_equal(joined(again(**given, return_dict=False)), joined(theirs(**given, return_dict=False)))
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not written.keys() - again.config.keys(), "keys that the reference does not know"
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16")
    loaded = ControlNetModel.from_pretrained(tmp_path / "theirs", variant="fp16")
    assert not loaded.training
    assert_residuals_close(loaded(**given), lambda: theirs(**given, return_dict=False))


def test_several_in_files_both_ways(tmp_path: Path) -> None:
    ours = MultiControlNetModel([pair(SD_1)[0] for _ in range(3)])
    given = inputs(SD_1, pictures=3) | {"conditioning_scale": [1.0, 0.5, 2.0]}
    ours.save_pretrained(tmp_path / "mine" / "controlnet")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "controlnet",
        "controlnet_1",
        "controlnet_2",
    ]
    theirs = diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "mine" / "controlnet"))
    assert_residuals_close(ours(**given), lambda: theirs(**given, return_dict=False))
    (tmp_path / "theirs").mkdir()
    theirs.save_pretrained(str(tmp_path / "theirs" / "controlnet"))
    again = MultiControlNetModel.from_pretrained(
        tmp_path / "theirs", subfolder="controlnet", dtype=torch.float32
    )
    assert len(again.nets) == 3 and again.dtype == torch.float32 and again.device.type == "cpu"
    assert_equal(joined(again(**given)), joined(ours(**given)))


def test_several_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"controlnet is not there\. .* controlnet_1, controlnet_2"):
        MultiControlNetModel.from_pretrained(tmp_path / "controlnet")
    with pytest.raises(InputError, match="controlnet is an empty list"):
        MultiControlNetModel([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controlnet_conditioning_channel_order": "rbg"}, r"= 'rbg' is not supported .* rgb, bgr\. Use a"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, r"by ControlNetModel\. Supported: DownBlock2D"),
        (
            {"class_embed_type": "timestep"},
            r"class_embed_type = 'timestep' is not supported by ControlNetConfig",
        ),
        (
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8},
            r"_type = 'image_proj' is not supported",
        ),
    ],
)
def test_configs_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ControlNetModel(**settings)


def test_a_copy_is_independent() -> None:
    ours, _ = pair(SD_1)
    given = inputs(SD_1)
    before: Tensor = ours(**given).mid_block_res_sample
    twin = copy.deepcopy(ours)
    twin.controlnet_mid_block.weight.data.zero_()
    assert_equal(ours(**given).mid_block_res_sample, before)
