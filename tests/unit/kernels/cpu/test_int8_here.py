"""Layers in 8 bits: how near they come, which layers become such, and that the model they are of stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_checkpoints import randomised
from torch import Tensor, nn

from retouch.kernels import int8_copy
from retouch.kernels.cpu import int8
from retouch.kernels.cpu.int8 import Int8Conv2d, Int8Linear
from retouch.models.unet import UNet2DConditionModel

pytestmark = [
    pytest.mark.usefixtures("no_gradients"),
]

UNET: dict[str, Any] = {
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}


def signal_to_noise(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape and found.dtype == exact.dtype
    error = found.double() - exact.double()
    return float(10 * torch.log10(exact.double().var() / error.var()))


def test_the_operations_are_as_they_are_called() -> None:
    """Fails with a torch that has changed them: then `is_available` is False, and this needs work."""
    assert int8.missing() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(dtype: torch.dtype, spread: float, bias: bool) -> None:
    layer = nn.Linear(96, 640, bias=bias).to(dtype)
    layer.weight *= torch.linspace(0.01, 3, 640)[:, None]  # channels of one scale would lose the small ones
    x = spread * torch.randn(2, 33, 96, dtype=dtype)
    found, exact = Int8Linear(layer)(x), layer(x)
    assert signal_to_noise(found, exact) > 37
    few = slice(0, 20)
    assert signal_to_noise(found[..., few], exact[..., few]) > 35


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)])
@pytest.mark.parametrize("size", [(9, 7), (16, 16), (1, 3)])
def test_a_convolution(
    dtype: torch.dtype, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    if min(size) + 2 * padding < kernel:
        return
    for spread in (0.01, 50.0):
        layer = nn.Conv2d(48, 80, kernel, stride=stride, padding=padding).to(dtype)
        layer.bias *= spread
        x = spread * torch.randn(2, 48, *size, dtype=dtype)
        # The edges count too: what is beyond them is zero, which is the middle of a byte.
        assert signal_to_noise(Int8Conv2d(layer)(x), layer(x)) > 36


def test_nothing_comes_of_nothing() -> None:
    linear, convolution = nn.Linear(32, 512), nn.Conv2d(32, 64, 3, padding=1)
    assert torch.equal(Int8Linear(linear)(torch.zeros(2, 32))[0], linear.bias)
    found = Int8Conv2d(convolution)(torch.zeros(1, 32, 4, 4))
    assert torch.equal(found[0, :, 2, 2], convolution.bias)


def test_what_is_no_number_is_not_hidden() -> None:
    x = torch.full((2, 32), float("nan"))
    assert not Int8Linear(nn.Linear(32, 512))(x).isfinite().any()


def test_a_unet() -> None:
    unet = randomised(UNet2DConditionModel(**UNET))
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    given = (torch.randn(2, 4, 9, 7), torch.tensor(500), torch.randn(2, 5, 12))
    plain = unet(*given).sample
    rounded = int8_copy(unet)
    kinds = [type(layer) for layer in rounded.modules()]
    assert kinds.count(Int8Conv2d) > 10 and kinds.count(Int8Linear) >= 2
    assert not any(isinstance(layer, Int8Linear | Int8Conv2d) for layer in unet.modules())
    assert type(rounded.conv_in) is nn.Conv2d and rounded.conv_in is unet.conv_in, "what is narrow is shared"
    assert type(rounded.up_blocks[0].upsamplers[0].conv) is nn.Conv2d
    assert type(rounded.time_embedding.linear_1) is nn.Linear
    assert rounded.dtype == unet.dtype and rounded.config is unet.config
    assert 20 < signal_to_noise(rounded(*given).sample, plain) < 60
    assert torch.equal(unet(*given).sample, plain)
    for name, value in unet.state_dict().items():
        assert torch.equal(value, before[name]), name
    prediction, deep = rounded(*given, return_deep=True)
    assert torch.equal(rounded(*given, deep=deep).sample, prediction)
