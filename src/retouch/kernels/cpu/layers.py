"""Optimized versions of the layers that take most of the time, with the same results up to rounding.

Each is the plain layer with another `forward`, so a layer is optimized and restored by a change of its class.
Calls with gradients, on another device or in a dtype without these kernels use the plain layer's `forward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retouch.kernels.cpu import onednn
from retouch.kernels.cpu.packed_weights import PackedWeight, Packing, has_hooks, is_inference
from retouch.models import attention, layers, lora

_LINEAR = Packing(lambda layer, weight: onednn.pack_linear(weight), onednn.unpack)


class Linear(PackedWeight, nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed_weight(_LINEAR, x)
        return super().forward(x) if packed is None else onednn.linear(x, packed, self.bias)

    def default_packing(self) -> Packing:
        return _LINEAR


CONVOLUTION = Packing(
    lambda layer, weight: onednn.pack_convolution(weight, layer.padding, layer.stride, layer.dilation),
    onednn.unpack,
)

# A 1x1 convolution is a linear layer of each pixel. (As a convolution, oneDNN takes thirty times as long for
# some sizes.)
_POINTWISE = Packing(
    lambda layer, weight: onednn.pack_linear(weight.flatten(1)),
    lambda packed: onednn.unpack(packed)[:, :, None, None],
)

# With fewer input channels than this, packing gains nothing. A model's first layer has so few, so it always
# has its parameter, from which the dtype and the device of a model are read.
_FEW_CHANNELS = 16


class Conv2d(PackedWeight, nn.Conv2d):
    """A convolution of maps in channels-last order, in which all layers after it stay.

    Latents and pictures, which have few channels, come out in the usual order.
    """

    def forward(self, x: Tensor) -> Tensor:
        packing, packed = self.default_packing(), None
        if x.ndim == 4 and is_inference(x):
            x = x.contiguous(memory_format=torch.channels_last)
            packed = None if packing is None else self.packed_weight(packing, x)
        if packed is None:
            y = super().forward(x)
        elif packing is _POINTWISE:
            y = onednn.linear(x.movedim(1, -1), packed, self.bias).movedim(-1, 1)
        else:
            y = onednn.convolution(x, packed, self.bias, self.padding, self.stride, self.dilation)
        return y.contiguous() if self.out_channels < _FEW_CHANNELS else y

    def default_packing(self) -> Packing | None:
        is_pointwise = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)
        return None if self.in_channels < _FEW_CHANNELS else _POINTWISE if is_pointwise else CONVOLUTION


class LoRALinear(lora.LoRALinear, Linear):
    """An optimized linear layer with LoRA updates."""


class LoRAConv2d(lora.LoRAConv2d, Conv2d):
    """An optimized convolution with LoRA updates."""


lora.register(Linear, LoRALinear)
lora.register(Conv2d, LoRAConv2d)


def can_bypass(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether another layer may do this one's work: it is of exactly this class and has no hooks."""
    return type(layer) is kind and not has_hooks(layer)


_HALVES = Packing(
    lambda layer, weight: [onednn.pack_linear(half) for half in weight.chunk(2)],
    lambda halves: torch.cat([onednn.unpack(half) for half in halves]),
)


class GEGLU(attention.GEGLU):
    """The gated activation, computed in the same pass as the products."""

    def forward(self, x: Tensor) -> Tensor:
        proj: Any = self.proj
        halves = proj.packed_weight(_HALVES, x) if can_bypass(proj, Linear) else None
        if halves is None:
            return super().forward(x)
        value_bias, gate_bias = proj.bias.chunk(2)
        gate = onednn.linear(x, halves[1], gate_bias, "gelu")
        return onednn.linear_times(x, halves[0], value_bias, gate)

    def pack(self) -> None:
        """Pack the linear layer's weight in two halves."""
        proj: Any = self.proj
        if can_bypass(proj, Linear):
            proj.pack_as(_HALVES)


class FeedForward(attention.FeedForward):
    """The two layers, for 1024 tokens at a time, so that the values between them stay in the cache."""

    TOKENS = 1024

    def forward(self, x: Tensor) -> Tensor:
        if not is_inference(x) or x.ndim != 3 or x.shape[0] * x.shape[1] <= self.TOKENS:
            return super().forward(x)
        tokens = x.flatten(0, 1)
        y = torch.empty_like(tokens)
        for part, result in zip(tokens.split(self.TOKENS), y.split(self.TOKENS), strict=True):
            result.copy_(self.net(part))
        return y.view(x.shape)


def _pack_phases(layer: nn.Conv2d, weight: Tensor) -> Any:
    """Return a 2x2 kernel for each of the four pixels that one pixel becomes, and the weight itself.

    Two of the three taps along each side see the same source pixel, so their weights are added.
    """
    taps = weight.float()
    kernels = []
    for rows in _merged(taps, 2):
        for kernel in _merged(rows, 3):
            kernels.append(onednn.pack_convolution(kernel.to(weight.dtype), [1, 1], [1, 1], [1, 1]))
    return kernels, weight  # it cannot be computed from the sums


def _merged(taps: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, middle, last = taps.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)


_PHASES = Packing(_pack_phases, lambda packed: packed[1])


class Upsample2D(layers.Upsample2D):
    """Nearest-neighbour upsampling and a 3x3 convolution, computed as four 2x2 convolutions of the small map.

    That takes 16 multiplications instead of 36 for the same sums.
    """

    def forward(self, x: Tensor, temb: Tensor | None = None, size: Any = None) -> Tensor:
        height, width = x.shape[2:]
        conv: Any = self.conv
        is_double = size is None or tuple(size) == (2 * height, 2 * width)
        phases = None
        if is_double and can_bypass(conv, Conv2d) and is_inference(x):
            x = x.contiguous(memory_format=torch.channels_last)
            phases = conv.packed_weight(_PHASES, x)
        if phases is None:
            return super().forward(x, temb, size)
        y = x.new_empty(len(x), 2 * height, 2 * width, conv.out_channels).permute(0, 3, 1, 2)
        self.fill(y, x, phases[0])
        return y

    def pack(self) -> None:
        """Pack the convolution's weight as four 2x2 kernels."""
        conv: Any = self.conv
        if can_bypass(conv, Conv2d):
            conv.pack_as(_PHASES)

    def fill(self, y: Tensor, x: Tensor, kernels: Any) -> None:
        """Write the result for `x` into `y`."""
        write_phases(y, x, kernels, self.conv.bias, padding=[1, 1])


def write_phases(y: Tensor, x: Tensor, kernels: Any, bias: Tensor | None, padding: list[int]) -> None:
    """Write each kernel's pixels into every second row and column of `y`.

    With no padding of rows, `x` has one row more at the top and at the bottom.
    """
    height, width = y.shape[2] // 2, y.shape[3] // 2
    for index, kernel in enumerate(kernels):
        down, across = divmod(index, 2)
        phase = onednn.convolution(x, kernel, bias, padding, [1, 1], [1, 1])
        y[:, :, down::2, across::2] = phase[:, :, down : down + height, across : across + width]
