"""LoRA files: the layer and the scale of each update, and files that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from retouch.checkpoints.lora import Layers, Update, read_updates
from retouch.errors import CheckpointError

UNET = {
    "mid.attn2.to_k": (6, 8),
    "mid.attn2.to_out.0": (6, 6),
    "mid.proj_in": (6, 6, 1, 1),
    "mid.resnets.0.conv1": (5, 6, 3, 3),
}
TEXT = {"encoder.layers.0.self_attn.q_proj": (4, 4)}
MODELS = {
    "unet": Layers.of(UNET, {"mid.resnets.0.conv1": "middle_block.0.in_layers.2"}),
    "text_encoder": Layers.of(TEXT),
}


def two(key: str, down: str, up: str, shape: tuple[int, ...], rank: int = 2) -> dict[str, Tensor]:
    return {
        f"{key}{down}.weight": torch.randn(rank, *shape[1:]),
        f"{key}{up}.weight": torch.randn(shape[0], rank, *[1] * (len(shape) - 2)),
    }


def kohya(name: str = "lora_unet_mid_attn2_to_k", shape: tuple[int, ...] = (6, 8), rank: int = 2) -> Any:
    return two(name, ".lora_down", ".lora_up", shape, rank)


def only(state: dict[str, Tensor], metadata: Any = None) -> tuple[str, str, Update]:
    """Return the only update of a file."""
    found = read_updates(state, MODELS, "x.safetensors", metadata=metadata)
    ((model, layers),) = found.items()
    ((layer, update),) = layers.items()
    return model, layer, update


@pytest.mark.parametrize(
    ("key", "down", "up", "layer"),
    [
        ("unet.mid.attn2.to_k", ".lora_A", ".lora_B", "mid.attn2.to_k"),
        ("mid.attn2.to_k", ".lora_A", ".lora_B", "mid.attn2.to_k"),
        ("unet.mid.attn2.to_k", ".lora.down", ".lora.up", "mid.attn2.to_k"),
        ("unet.mid.attn2.to_out.0", ".lora.down", ".lora.up", "mid.attn2.to_out.0"),
        ("unet.mid.attn2.processor.to_k", "_lora.down", "_lora.up", "mid.attn2.to_k"),
        ("mid.attn2.processor.to_out", "_lora.down", "_lora.up", "mid.attn2.to_out.0"),
        ("lora_unet_mid_attn2_to_out_0", ".lora_down", ".lora_up", "mid.attn2.to_out.0"),
        ("lora_unet_mid_resnets_0_conv1", ".lora_down", ".lora_up", "mid.resnets.0.conv1"),
        ("lora_unet_middle_block_0_in_layers_2", ".lora_down", ".lora_up", "mid.resnets.0.conv1"),
        ("lora_unet_mid_proj_in", ".lora_A", ".lora_B", "mid.proj_in"),
        *(
            (f"{key}{first}", down, up, "encoder.layers.0.self_attn.q_proj")
            for key in ("text_encoder.text_model.encoder.layers.0.", "text_encoder.encoder.layers.0.")
            for first, down, up in (
                ("self_attn.q_proj", ".lora_A", ".lora_B"),
                ("self_attn.q_proj", ".lora_linear_layer.down", ".lora_linear_layer.up"),
                ("self_attn.to_q", "_lora.down", "_lora.up"),
            )
        ),
        *(
            (
                f"{key}_text_model_encoder_layers_0_self_attn_q_proj",
                ".lora_down",
                ".lora_up",
                next(iter(TEXT)),
            )
            for key in ("lora_te", "lora_te1")
        ),
    ],
)
def test_spellings(key: str, down: str, up: str, layer: str) -> None:
    state = two(key, down, up, {**UNET, **TEXT}[layer])
    model, found, update = only(state)
    assert (model, found) == ("text_encoder" if layer in TEXT else "unet", layer)
    lower, upper = state.values()
    assert torch.equal(update.down, lower) and torch.equal(update.up, upper.flatten(1)) and update.scale == 1


def test_a_linear_update_for_a_point_convolution() -> None:
    state = kohya("lora_unet_mid_proj_in", (6, 6))
    assert only(state)[2].down.shape == (2, 6)


def test_alpha_counts_by_the_rank() -> None:
    for alpha in (torch.tensor(3.0), torch.tensor([3.0]), torch.tensor(3, dtype=torch.int64)):
        assert only({**kohya(rank=4), "lora_unet_mid_attn2_to_k.alpha": alpha})[2].scale == 0.75


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": 4, "lora_alpha": 2}, 0.5),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_k": 8}}, 2.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_q": 8, "mid.attn2.to_k": 1}}, 0.25),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, 1.0),
    ],
)
def test_settings_that_peft_leaves(settings: dict[str, Any], scale: float) -> None:
    state = two("unet.mid.attn2.to_k", ".lora_A", ".lora_B", (6, 8), rank=4)
    texts = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})}
    assert only(state, texts)[2].scale == scale
    texts = {"lora_adapter_metadata": json.dumps({f"text_encoder.{key}": 1 for key in settings})}
    assert only(state, texts)[2].scale == 1


def test_a_kernel_in_the_middle() -> None:
    """LyCORIS can split a convolution into three."""
    key = "lora_unet_mid_resnets_0_conv1"
    state = {
        f"{key}.lora_down.weight": torch.randn(2, 6, 1, 1),
        f"{key}.lora_mid.weight": torch.randn(2, 2, 3, 3),
        f"{key}.lora_up.weight": torch.randn(5, 2, 1, 1),
        f"{key}.alpha": torch.tensor(1.0),
    }
    update = only(state)[2]
    x = torch.randn(1, 6, 7, 7)
    down, middle, up = list(state.values())[:3]
    whole = (update.up @ update.down.flatten(1)).reshape(5, 6, 3, 3)
    conv = torch.nn.functional.conv2d
    assert_close(conv(x, whole, padding=1), lambda: conv(conv(conv(x, down), middle, padding=1), up))
    assert update.scale == 0.5


def test_both_names_of_a_layer() -> None:
    ours, theirs = kohya("lora_unet_mid_block_x"), kohya("lora_unet_middle_block_0_in_layers_2", (5, 6, 3, 3))
    models = {"unet": Layers.of({"mid_block.x": (6, 8)}, {"mid_block.x": "middle_block.0"})}
    with pytest.warns(UserWarning, match=r"two kinds of names.*2 keys, first lora_unet_middle_block"):
        found = read_updates({**theirs, **ours}, models, "x.safetensors")
    assert list(found["unet"]) == ["mid_block.x"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"lora_unet_mid_attn2_to_k.hada_w1_a": 1},
            r"x.safetensors holds LoHa, not plain LoRA: lora_unet_mid",
        ),
        ({"lora_unet_mid_attn2_to_k.lokr_w1": 1}, "holds LoKr.*merge it into a checkpoint"),
        ({"lora_unet_mid_attn2_to_k.oft_blocks": 1}, "holds OFT"),
        ({"lora_unet_mid_attn2_to_k.diff": 1}, "holds full differences"),
        ({**kohya(), "lora_unet_mid_attn2_to_k.dora_scale": 1}, "holds DoRA"),
        ({"unet.mid.attn2.to_k.lora_magnitude_vector": 1}, "holds DoRA"),
        ({}, "0 keys that do not belong"),
        (
            {**kohya(), "what.is.this": 1, "and_that": 1},
            r"2 keys that do not belong to a LoRA: what.is.this, and_",
        ),
        ({"emb_params": 1}, "Accepted are LoRA files.*This is a textual inversion.*load_textual_inversion"),
        ({"model.diffusion_model.x.weight": 1}, "This is a checkpoint"),
        ({"down_blocks.0.resnets.0.conv1.weight": 1}, "This is a UNet alone"),
        (kohya("lora_unet_mid_attn3_to_k"), r"2 keys name layers.*mid_attn3_to_k.lora_down.*Check which"),
        (kohya("lora_te2_text_projection"), "2 keys name layers that this pipeline does not have"),
        (
            kohya(shape=(6, 16)),
            r"1 updates.*\(2, 16\) for a weight \(6, 8\).*text of width 16, the UNet here.*8",
        ),
        (kohya(shape=(6, 768)), "text of width 768"),
        (kohya(shape=(7, 8)), "1 updates are of other shapes"),
        (kohya("lora_unet_mid_resnets_0_conv1", (5, 6)), "1 updates are of other shapes"),
        ({"lora_unet_mid_attn2_to_k.lora_up.weight": torch.ones(6, 2)}, "without its down matrix"),
        ({"lora_unet_mid_attn2_to_k.lora_down.weight": torch.ones(2, 8)}, "without its up matrix"),
        ({"lora_unet_mid_attn2_to_k.alpha": torch.ones(())}, "without its down matrix"),
        ({key: tensor[:1] if "down" in key else tensor for key, tensor in kohya().items()}, "ranks.*1 and 2"),
        (
            {**kohya(), **two("unet.mid.attn2.to_k", ".lora_A", ".lora_B", (6, 8))},
            "has two updates for one layer",
        ),
        ({key: tensor / 0 for key, tensor in kohya().items()}, "NaN or infinite values in lora_unet_mid"),
    ],
)
def test_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_updates(state, MODELS, "x.safetensors")


def test_settings_that_cannot_be_read() -> None:
    for text in ("{", "[1, 2]", "3"):
        with pytest.raises(CheckpointError, match="not a JSON dictionary"):
            read_updates(kohya(), MODELS, "x.safetensors", metadata={"lora_adapter_metadata": text})
