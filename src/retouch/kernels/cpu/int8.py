"""Linear layers and convolutions that multiply in 8 bits: faster on a CPU with VNNI, and less exact.

Weights are rounded once, with one scale for each output channel; inputs are rounded in each call, with one
scale for all. Sums are exact. torch has oneDNN's operations for this under private names; where they are
missing or have changed, `is_available` is False.
"""

from __future__ import annotations

import functools
import platform
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retouch.kernels.cpu import layers as optimized
from retouch.models import lora
from retouch.models.ip_adapter import ImagePromptAttention
from retouch.models.layers import Upsample2D
from retouch.models.replacement import with_replaced
from retouch.models.unet import UNet2DConditionModel

Model = TypeVar("Model", bound=nn.Module)

# The signatures that this file relies on. Another version of torch may have others.
SCHEMAS = {
    "qlinear_prepack": "(Tensor weight, int[]? x_shape) -> Tensor",
    "qlinear_pointwise": (
        "(Tensor qx, float x_scale, int x_zero_point, Tensor qw, Tensor w_scale, Tensor w_zero_point, "
        "Tensor? bias, float output_scale, int output_zero_point, ScalarType? output_dtype, "
        "str post_op_name, Scalar?[] post_op_args, str post_op_algorithm) -> Tensor"
    ),
    "qconv_prepack": (
        "(Tensor weight, Tensor w_scales, float x_scale, int x_zp, int[] stride, int[] padding, "
        "int[] dilation, int groups, int[]? x_shape=None) -> Tensor"
    ),
    "qconv2d_pointwise": (
        "(Tensor qx, float x_scale, int x_zero_point, Tensor qw, Tensor w_scale, Tensor w_zero_point, "
        "Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, float output_scale, "
        "int output_zero_point, ScalarType? output_dtype, str attr, Scalar?[] scalars, str? algorithm) "
        "-> Tensor"
    ),
}
_ZERO_POINT = 128  # of unsigned inputs, which are rounded to 0..255
# Rounding costs a pass over the input. It pays if each input value takes part in at least this many products.
_MIN_PRODUCTS = 512


@functools.cache
def is_available() -> bool:
    """Return whether this machine multiplies faster in 8 bits than in 16."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (is_x86 and torch.backends.mkldnn.is_available()):
        return False
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    return missing() is None


def missing() -> str | None:
    """Return the first operation that torch lacks or has with another signature; None if all are there."""
    for name, schema in SCHEMAS.items():
        found = getattr(getattr(torch.ops.onednn, name, None), "default", None)
        if found is None or str(found._schema).partition("(")[2] != schema[1:]:
            return name
    return None


def int8_refusal(model: Any) -> str | None:
    """Return why a model cannot multiply in 8 bits, as a clause for a message; None if it can."""
    if not is_available():
        return "this processor, or this build of torch, has no operations for it (VNNI and oneDNN)"
    if not isinstance(model, UNet2DConditionModel):
        return f"the model is a {type(model).__module__}.{type(model).__name__}, not a retouch UNet"
    if model.device.type != "cpu":
        return f"the UNet is on {model.device}, and 8 bits are supported on the CPU only"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the UNet is in {model.dtype}"
    if lora.adapters(model):
        return "LoRA adapters are loaded, whose layers are not rounded"
    has_images = any(isinstance(layer, ImagePromptAttention) for layer in model.modules())
    return "IP-Adapters are loaded" if has_images else None


def int8_copy(model: Model) -> Model:
    """Return a copy of a model that multiplies in 8 bits where that is faster. Other layers are shared."""
    return with_replaced(model, _converted)


def _converted(layer: Any) -> nn.Module | None:
    if isinstance(layer, Upsample2D):
        return layer  # its optimized version saves more, by fewer products
    # Of exactly these classes: others have something added to them, such as a LoRA adapter.
    if type(layer) in (nn.Linear, optimized.Linear):
        return Int8Linear(layer) if layer.out_features >= _MIN_PRODUCTS else layer
    if type(layer) in (nn.Conv2d, optimized.Conv2d):
        is_simple = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        height, width = layer.kernel_size
        is_wide = layer.in_channels >= 16 and layer.out_channels * height * width >= _MIN_PRODUCTS
        return Int8Conv2d(layer) if is_simple and is_wide else layer
    return None


def _rounded(x: Tensor) -> tuple[Tensor, float]:
    """Return `x` rounded to unsigned bytes around the zero point, and the scale of one unit."""
    smallest, largest = torch.aminmax(x)
    scale = max(float(largest), -float(smallest)) / 127 or 1.0
    return x.mul(1 / scale).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO_POINT), scale


class _Int8(nn.Module):
    """Base of both kinds of layers: the rounded weights, their scales and the bias."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        self.scales = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        self.rounded = (weight / self.scales.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        self.zero_points = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if layer.bias is None else layer.bias.detach().float()


class Int8Linear(_Int8):
    """A linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.packed = torch.ops.onednn.qlinear_prepack(self.rounded, None)
        del self.rounded

    def forward(self, x: Tensor) -> Tensor:
        rounded, scale = _rounded(x)
        given = (rounded, scale, _ZERO_POINT, self.packed, self.scales, self.zero_points, self.bias)
        return torch.ops.onednn.qlinear_pointwise(*given, 1.0, 0, x.dtype, "none", [], "")


class Int8Conv2d(_Int8):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.shape = [list(layer.stride), list(layer.padding), list(layer.dilation), 1]
        size = [1, layer.in_channels, 32, 32]  # the order is chosen for one size, and is right for all
        given = (self.rounded, self.scales, 1.0, _ZERO_POINT, *self.shape, size)
        self.packed = torch.ops.onednn.qconv_prepack(*given)
        del self.rounded

    def forward(self, x: Tensor) -> Tensor:
        rounded, scale = _rounded(x.contiguous(memory_format=torch.channels_last))
        weight = (self.packed, self.scales, self.zero_points, self.bias)
        given = (rounded, scale, _ZERO_POINT, *weight, *self.shape)
        return torch.ops.onednn.qconv2d_pointwise(*given, 1.0, 0, x.dtype, "none", [], "")
