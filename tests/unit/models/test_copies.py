"""Rows that a UNet is told are there twice: the same prediction, and what is equal is computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close
from ip_adapter_files import ip_adapter
from recorded_ops import OpRecorder
from tiny_checkpoints import randomised
from torch import Tensor

from retouch.checkpoints.ip_adapter import read_ip_adapter
from retouch.models import int8
from retouch.models.ip_adapter import attach
from retouch.models.prepared import graphs
from retouch.models.prepared.prepare import prepare
from retouch.models.unet import UNet2DConditionModel

pytestmark = pytest.mark.usefixtures("no_gradients")

TEXT, POOLED = 12, 10
SD: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT,
    "norm_num_groups": 4,
}
NO_TEXT_FIRST = SD | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SIMPLE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD": SD,
    "SD inpainting": SD | {"in_channels": 9},
    "SD 2": SD | {"attention_head_dim": (1, 2), "use_linear_projection": True},
    "several transformer blocks": SD | {"transformer_layers_per_block": 2},
    "SDXL": NO_TEXT_FIRST
    | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
    },
    "Kandinsky": SD
    | SIMPLE
    | {"encoder_hid_dim": POOLED, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
    "Kandinsky's blocks, SD's inputs": SD | SIMPLE,
    "LCM": SD | {"time_cond_proj_dim": 6},
    "text in place of self-attention": SD | {"only_cross_attention": True},
    "no text at the finest level": NO_TEXT_FIRST,
    "text in the middle alone": SD | {"down_block_types": ("DownBlock2D",) * 2},
    "text on the way up alone": SD | {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": None},
    "no text": SD
    | {
        "down_block_types": ("DownBlock2D",) * 2,
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D",) * 2,
    },
}


def new_unet(settings: dict[str, Any], prepared: bool = True) -> UNet2DConditionModel:
    torch.manual_seed(1)
    unet = randomised(UNet2DConditionModel(**settings))
    assert isinstance(unet, UNet2DConditionModel)
    return prepare(unet) if prepared else unet


def inputs(settings: dict[str, Any], pictures: int = 2, copies: int = 2) -> dict[str, Any]:
    """Latents that are there `copies` times, and of all else rows that differ."""
    rows = pictures * copies
    sample = torch.randn(pictures, settings.get("in_channels", 4), 9, 7)
    given: dict[str, Any] = {"sample": sample.repeat(copies, 1, 1, 1), "timestep": torch.tensor(321)}
    given["encoder_hidden_states"] = torch.randn(rows, 5, TEXT)
    if "time_cond_proj_dim" in settings:
        given["timestep_cond"] = torch.randn(rows, settings["time_cond_proj_dim"])
    if settings.get("addition_embed_type") == "image":
        given["encoder_hidden_states"] = None
        given["added_cond_kwargs"] = {"image_embeds": torch.randn(rows, POOLED)}
    elif settings.get("addition_embed_type"):
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, POOLED),
            "time_ids": torch.rand(rows, 6),
        }
    return given


def check(unet: Any, given: dict[str, Any], copies: int = 2, tolerance: float = 1e-5) -> None:
    """The same with and without the promise, all of it and with deep features."""
    wanted, deep = unet(**given, return_deep=True)
    found, same_deep = unet(**given, return_deep=True, copies=copies)
    assert_close(found, wanted, tolerance)
    assert_close(same_deep, deep, tolerance)
    assert_close(unet(**given, deep=deep, copies=copies).sample, wanted, tolerance)


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "plain"])
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, pictures: int, prepared: bool) -> None:
    settings = FAMILIES[family]
    unet, given = new_unet(settings, prepared), inputs(settings, pictures)
    check(unet, given)
    negative, positive = unet(**given, copies=2).sample.chunk(2)
    assert torch.allclose(negative, positive, atol=1e-3) == (family == "no text")


def test_more_than_two() -> None:
    check(new_unet(SD), inputs(SD, pictures=2, copies=3), copies=3)


def test_a_timestep_for_each_row() -> None:
    given = inputs(SD) | {"timestep": torch.tensor([10, 300, 600, 900])}
    check(new_unet(SD), given)


def test_control() -> None:
    unet, given = new_unet(SD), inputs(SD)
    channels_and_sizes = (*[(8, 9, 7)] * 3, (8, 5, 4), *[(16, 5, 4)] * 2)
    given["down_block_additional_residuals"] = [torch.randn(4, *shape) for shape in channels_and_sizes]
    given["mid_block_additional_residual"] = torch.randn(4, 16, 5, 4)
    wanted = unet(**given).sample
    assert_close(unet(**given, copies=2).sample, wanted, 1e-5)
    assert not torch.allclose(unet(**inputs(SD), copies=2).sample, wanted, atol=1e-2)


def adapted(prepared: bool = True) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    unet = new_unet(SD, prepared)
    attach(unet, [read_ip_adapter(ip_adapter(unet), "a test")])
    given = inputs(SD)
    width = unet.encoder_hid_proj.image_projection_layers[0].reads  # type: ignore[union-attr, index]
    given["added_cond_kwargs"] = {"image_embeds": [torch.randn(4, 1, width)]}
    return unet, given


def test_ip_adapters() -> None:
    check(*adapted())


@pytest.mark.skipif(not int8.is_available(), reason="this processor has no VNNI")
def test_eight_bits() -> None:
    """What comes into a layer is rounded with one scale, which is that of either half."""
    settings = SD | {"block_out_channels": (64, 128)}
    unet = int8.int8_copy(new_unet(settings))
    assert any(isinstance(layer, int8.Int8Conv2d) for layer in unet.down_blocks[0].resnets[0].children())
    check(unet, inputs(settings), tolerance=1e-4)


def rows_seen(unet: UNet2DConditionModel, given: dict[str, Any], **options: Any) -> dict[str, set[int]]:
    """How many rows came into each layer."""
    seen: dict[str, set[int]] = {}

    def listen(name: str, x: Tensor) -> None:
        seen.setdefault(name, set()).add(len(x))

    handles = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: listen(name, args[0]))
        for name, layer in unet.named_modules()
        if name.rpartition(".")[2] not in ("", "encoder_hid_proj")
    ]
    unet(**given, **options)
    for handle in handles:
        handle.remove()
    return seen


def test_what_is_computed_once() -> None:
    unet, given = new_unet(SD), inputs(SD)
    deep = unet(**given, return_deep=True).deep
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    shared = ("down_blocks.0.resnets.0", "down_blocks.0.attentions.0.proj_in", f"{block}.attn1")
    for options in ({}, {"deep": deep}):
        seen = rows_seen(unet, given, copies=2, **options)
        assert [seen[name] for name in shared] == [{2}] * 3
        begins = list(seen).index(f"{block}.attn1.to_out.0")
        after = [name for name in list(seen)[begins + 1 :] if not name.endswith("time_emb_proj")]
        assert f"{block}.attn2.to_q" in after and "up_blocks.1.resnets.0.conv1" in after
        assert all(seen[name] == {4} for name in after), "all that knows the text, and the way up"
        seen = rows_seen(unet, given, **options)
        assert all(seen[name] == {4} for name in (*shared, *after))


def test_those_who_are_told_different_things_share_nothing() -> None:
    """SDXL's pooled text is a part of the time embedding, which the first layers hear already."""
    seen = rows_seen(new_unet(FAMILIES["SDXL"]), inputs(FAMILIES["SDXL"]), copies=2)
    assert seen["down_blocks.0.resnets.0"] == {4}


@pytest.mark.parametrize("with_adapter", [False, True])
def test_compiling_whole(with_adapter: bool) -> None:
    unet, given = adapted(prepared=False) if with_adapter else (new_unet(SD, prepared=False), inputs(SD))
    torch._dynamo.reset()  # which counts the kinds of calls of all models
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    assert_close(compiled(**given, copies=2).sample, unet(**given).sample, 1e-5)


def test_recorded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the promise and without are two kinds of calls."""
    monkeypatch.setattr(OpRecorder, "made", [], raising=False)
    monkeypatch.setattr(OpRecorder, "error", None)
    monkeypatch.setitem(graphs.RECORDERS, "cpu", OpRecorder)
    unet = new_unet(SD)
    called = graphs.Recorded(unet)
    for _ in range(3):
        # As many rows, which are there twice or not.
        for copies, given in ((2, inputs(SD)), (1, inputs(SD, pictures=4, copies=1))):
            sample, timestep, text = given.values()
            found = called(sample, timestep, text, copies=copies, return_dict=False)[0]
            assert_close(found, unet(sample, timestep, text).sample, 1e-5)
    assert OpRecorder.made[0].recorded == 2
