"""oneDNN's linear layer and convolution, with weights in the order that suits the processor.

torch offers this only through operations that its compiler uses, under private names. Nothing outside this
file calls them; where they are missing or have changed, `is_available` says so and layers stay plain.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

# As they are called here. Another version of torch may have others.
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
    """The first of torch's operations that is not there as it is called here."""
    for (name, overload), schema in SCHEMAS.items():
        packet = getattr(torch.ops.mkldnn, name, None)
        found = getattr(packet, overload, None)
        if found is None or str(found._schema).partition("(")[2] != schema[1:]:
            return f"{name}.{overload}"
    # Not oneDNN's, but as little documented, and what large maps are normed by.
    return None if hasattr(torch, "batch_norm_update_stats") else "batch_norm_update_stats"


@functools.cache
def is_available() -> bool:
    """Whether layers of this machine's CPU gain by it. Measured on x86; elsewhere torch has other kernels."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and missing() is None


@functools.cache
def computes(dtype: torch.dtype) -> bool:
    """Whether it takes tensors of this dtype."""
    if dtype == torch.bfloat16:
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return supported is not None and bool(supported())
    return dtype == torch.float32


def pack_linear(weight: Tensor) -> Any:
    """A linear layer's weight in oneDNN's order, a tensor that only these functions can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def pack_convolution(weight: Tensor, padding: Any, stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """A convolution's weight in oneDNN's order. The layout is chosen for some size, and serves all."""
    size = [1, weight.shape[1], 32, 32]
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, 1, size)


def unpack(packed: Any) -> Tensor:
    """The weight as it was, bit for bit."""
    return packed.to_dense()


def linear(
    x: Tensor, packed: Any, bias: Tensor | None, activation: Literal["none", "gelu"] = "none"
) -> Tensor:
    """`x` times the weight, and the activation of it in the same pass."""
    return torch.ops.mkldnn._linear_pointwise(
        x, packed, bias, activation, [], "none" if activation == "gelu" else ""
    )


def linear_times(x: Tensor, packed: Any, bias: Tensor | None, factor: Tensor) -> Tensor:
    """The same, multiplied by another tensor in the same pass."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, packed, bias, "mul")


def convolution(
    x: Tensor,
    packed: Any,
    bias: Tensor | None,
    padding: Any,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The convolution of a map in channels-last order, into the same order."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, bias, padding, stride, dilation, 1, "none", [], ""
    )
