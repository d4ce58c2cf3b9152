"""Linear layers and convolutions that multiply in 8 bits: quicker on a CPU with VNNI, and less exact.

Weights are rounded once, with a scale for each output channel; what comes in is rounded in each call, with
one scale. Sums are exact. oneDNN's operations for it are torch's, under private names: where they are missing
or are called in another way, `is_available` says so.
"""

from __future__ import annotations

import copy
import functools
import platform
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retouch.models.layers import Upsample2D
from retouch.models.prepared import layers as prepared

Model = TypeVar("Model", bound=nn.Module)

# As they are called here. Another version of torch may have others.
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
_MIDDLE = 128  # of 0 to 255 that what comes in is rounded to
# Rounding costs a pass over what comes in. It pays where each value then takes part in so many products.
_WORTH_IT = 512


@functools.cache
def is_available() -> bool:
    """Whether this machine multiplies in 8 bits quicker than in 16."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (is_x86 and torch.backends.mkldnn.is_available()):
        return False
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    return missing() is None


def missing() -> str | None:
    """The first of torch's operations that is not there as it is called here."""
    for name, schema in SCHEMAS.items():
        found = getattr(getattr(torch.ops.onednn, name, None), "default", None)
        if found is None or str(found._schema).partition("(")[2] != schema[1:]:
            return name
    return None


def int8_copy(model: Model) -> Model:
    """A copy of a model that multiplies in 8 bits where it gains by it. It shares the other layers."""
    shallow = copy.copy(model)
    shallow.__dict__["_modules"] = {
        name: None if part is None else _converted(part) for name, part in model._modules.items()
    }
    return shallow


def _converted(layer: Any) -> nn.Module:
    if isinstance(layer, Upsample2D):
        return layer  # which has a better way to do with fewer products
    # By their very class: others have something added to them, such as a LoRA adapter.
    if type(layer) in (nn.Linear, prepared.Linear):
        return Int8Linear(layer) if layer.out_features >= _WORTH_IT else layer
    if type(layer) in (nn.Conv2d, prepared.Conv2d):
        is_simple = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        height, width = layer.kernel_size
        is_wide = layer.in_channels >= 16 and layer.out_channels * height * width >= _WORTH_IT
        return Int8Conv2d(layer) if is_simple and is_wide else layer
    return int8_copy(layer) if layer._modules else layer


def _rounded(x: Tensor) -> tuple[Tensor, float]:
    """Whole numbers around the middle of a byte, and what one of them is worth."""
    least, most = torch.aminmax(x)
    scale = max(float(most), -float(least)) / 127 or 1.0
    return x.mul(1 / scale).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_MIDDLE), scale


class _Int8(nn.Module):
    """What both kinds have in common: the rounded weights, what they are worth, and the bias."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        self.worth = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        self.whole = (weight / self.worth.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        self.middles = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if layer.bias is None else layer.bias.detach().float()


class Int8Linear(_Int8):
    """A linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.packed = torch.ops.onednn.qlinear_prepack(self.whole, None)
        del self.whole

    def forward(self, x: Tensor) -> Tensor:
        rounded, scale = _rounded(x)
        given = (rounded, scale, _MIDDLE, self.packed, self.worth, self.middles, self.bias)
        return torch.ops.onednn.qlinear_pointwise(*given, 1.0, 0, x.dtype, "none", [], "")


class Int8Conv2d(_Int8):
    """A convolution."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.shape = [list(layer.stride), list(layer.padding), list(layer.dilation), 1]
        size = [1, layer.in_channels, 32, 32]  # the layout is chosen for some size, and serves all
        self.packed = torch.ops.onednn.qconv_prepack(self.whole, self.worth, 1.0, _MIDDLE, *self.shape, size)
        del self.whole

    def forward(self, x: Tensor) -> Tensor:
        rounded, scale = _rounded(x.contiguous(memory_format=torch.channels_last))
        given = (rounded, scale, _MIDDLE, self.packed, self.worth, self.middles, self.bias, *self.shape)
        return torch.ops.onednn.qconv2d_pointwise(*given, 1.0, 0, x.dtype, "none", [], "")
