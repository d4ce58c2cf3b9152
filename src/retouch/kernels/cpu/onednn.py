"""oneDNN's linear layer and convolution, with weights packed in the order that is fastest on this processor.

torch has them only as private operations for its compiler. Nothing outside this file calls them. Where they
are missing or have changed, `is_available` is False and layers stay plain.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

# The signatures that this file relies on. Another version of torch may have others.
SCHEMAS = {
    ("_reorder_linear_weight", "default"): "(Tensor self, int? batch_size=None) -> Tensor Y",
    ("_reorder_convolution_weight", "default"): (
        "(Tensor self, int[2] padding=0, int[2] stride=1, int[2] dilation=1, int groups=1, "
        "int[]? input_size=None) -> Tensor Y"
    ),
    ("_linear_pointwise", "default"): (
        "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
    ),
    ("_linear_pointwise", "binary"): "(Tensor X, Tensor other, Tensor W, Tensor? B, str attr) -> Tensor Y",
    ("_convolution_pointwise", "default"): (
        "(Tensor X, Tensor W, Tensor? B, int[] padding, int[] stride, int[] dilation, int groups, str attr, "
        "Scalar?[] scalars, str? algorithm) -> Tensor Y"
    ),
}


def missing() -> str | None:
    """Return the first operation that torch lacks or has with another signature; None if all are there."""
    for (name, overload), schema in SCHEMAS.items():
        packet = getattr(torch.ops.mkldnn, name, None)
        found = getattr(packet, overload, None)
        if found is None or str(found._schema).partition("(")[2] != schema[1:]:
            return f"{name}.{overload}"
    # Not oneDNN's, but as little documented; large_maps.py computes statistics with it.
    return None if hasattr(torch, "batch_norm_update_stats") else "batch_norm_update_stats"


@functools.cache
def is_available() -> bool:
    """Return whether layers get faster by it here. Measured on x86; elsewhere torch has other kernels."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and missing() is None


@functools.cache
def computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes in this dtype here."""
    if dtype == torch.bfloat16:
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return supported is not None and bool(supported())
    return dtype == torch.float32


def pack_linear(weight: Tensor) -> Any:
    """Pack a linear layer's weight. Only the functions of this file can read the result."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def pack_convolution(weight: Tensor, padding: Any, stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """Pack a convolution's weight. oneDNN chooses the order for one input size; it is right for all sizes."""
    size = [1, weight.shape[1], 32, 32]
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, 1, size)


def unpack(packed: Any) -> Tensor:
    """Return the weight as it was before packing, bit for bit."""
    return packed.to_dense()


def linear(
    x: Tensor, packed: Any, bias: Tensor | None, activation: Literal["none", "gelu"] = "none"
) -> Tensor:
    """Compute the layer, and the activation in the same pass."""
    return torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, activation, [], "none" if activation == "gelu" else ""
    )


def linear_times(x: Tensor, packed: Any, bias: Tensor | None, factor: Tensor) -> Tensor:
    """Compute the layer, and multiply by another tensor in the same pass."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, packed, bias, "mul")


def convolution(
    x: Tensor,
    packed: Any,
    bias: Tensor | None,
    padding: Any,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve a map in channels-last order; the result is in the same order."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, dilation, 1, "none", [], ""
    )
