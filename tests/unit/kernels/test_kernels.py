"""The door of the kernels: what it exports, and that every optimization can be undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from closeness import assert_close
from optimized_layers import has_optimized_layers
from torch import nn

from retouch import kernels
from retouch.checkpoints.lora import Update
from retouch.kernels.cpu import int8, onednn
from retouch.models import lora
from retouch.models.controlnet import ControlNetModel
from retouch.models.unet import UNet2DConditionModel

SETTINGS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**SETTINGS, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()


def test_optimize_and_restore(unet: UNet2DConditionModel) -> None:
    given = torch.randn(2, 4, 8, 8), torch.tensor(500), torch.randn(2, 5, 12)
    classes = [type(layer) for layer in unet.modules()]
    attributes = [sorted(vars(layer)) for layer in unet.modules()]
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    with torch.no_grad():
        plain = copy.deepcopy(unet)
        wanted = plain(*given).sample
        assert kernels.optimize(unet) is unet and kernels.is_optimized(unet)
        assert has_optimized_layers(unet) == onednn.is_available()
        assert_close(unet(*given).sample, lambda: plain(*given).sample)
        assert kernels.restore(unet) is unet and not kernels.is_optimized(unet)
        assert torch.equal(unet(*given).sample, wanted)
    assert [type(layer) for layer in unet.modules()] == classes
    assert [sorted(vars(layer)) for layer in unet.modules()] == attributes
    assert not any(layer._forward_pre_hooks for layer in unet.modules())
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())


def test_optimizing_twice_is_optimizing_once(unet: UNet2DConditionModel) -> None:
    kernels.optimize(kernels.optimize(unet))
    assert len(unet._forward_pre_hooks) == 1
    kernels.restore(unet)
    assert not unet._forward_pre_hooks and not unet._forward_pre_hooks_with_kwargs


def test_a_copy_is_optimized_as_well(unet: UNet2DConditionModel) -> None:
    twin = copy.deepcopy(kernels.optimize(unet))
    assert kernels.is_optimized(twin)
    kernels.restore(twin)
    assert kernels.is_optimized(unet) and not kernels.is_optimized(twin)


def test_hooks_of_other_code_stay(unet: UNet2DConditionModel) -> None:
    calls: list[int] = []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    kernels.restore(kernels.optimize(unet))
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), torch.tensor(500), torch.randn(1, 5, 12))
    assert calls == [1]


def test_without_parameters() -> None:
    assert kernels.is_optimized(kernels.optimize(nn.SiLU()))


class TestInt8Refusal:
    @pytest.fixture(autouse=True)
    def available(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(int8, "is_available", lambda: True)

    def test_none_if_it_can(self, unet: UNet2DConditionModel) -> None:
        assert kernels.int8_refusal(unet) is None
        assert kernels.int8_refusal(unet.bfloat16()) is None
        assert kernels.int8_refusal(kernels.optimize(unet)) is None

    def test_the_reasons(self, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "float16" in str(kernels.int8_refusal(copy.deepcopy(unet).half()))
        assert "meta" in str(kernels.int8_refusal(copy.deepcopy(unet).to("meta")))
        assert "ControlNetModel" in str(kernels.int8_refusal(ControlNetModel(**SETTINGS)))
        assert "torch.nn" in str(kernels.int8_refusal(nn.Linear(2, 2)))
        lora.attach(unet, "style", {"conv_out": Update(torch.ones(1, 8, 3, 3), torch.ones(4, 1), 1.0)})
        assert "LoRA" in str(kernels.int8_refusal(unet))
        monkeypatch.setattr(int8, "is_available", lambda: False)
        assert "VNNI" in str(kernels.int8_refusal(unet))


def test_the_description_is_one_line() -> None:
    line = kernels.description()
    assert "\n" not in line
    for word in ("layers", "attention", "8 bits"):
        assert word in line
