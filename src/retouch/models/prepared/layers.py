"""The prepared twins of the layers that cost time: same names, same results up to rounding.

Each is the plain layer with another `forward`, so that a layer becomes its twin, and plain again, by a change
of class. A call that wants gradients, another device or a dtype that is not for these kernels takes the
plain layer's way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retouch.models import attention, layers
from retouch.models.prepared import onednn
from retouch.models.prepared.weights import Form, KeepsWeight, has_hooks, is_inference

_LINEAR = Form(lambda layer, weight: onednn.pack_linear(weight), onednn.unpack)


class Linear(KeepsWeight, nn.Linear):
    """A linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        packed = self.kept(_LINEAR, x)
        return super().forward(x) if packed is None else onednn.linear(x, packed, self.bias)

    def usual_form(self) -> Form:
        return _LINEAR


CONVOLUTION = Form(
    lambda layer, weight: onednn.pack_convolution(weight, layer.padding, layer.stride, layer.dilation),
    onednn.unpack,
)

# Of single pixels it is a linear layer. (As a convolution, oneDNN takes thirty times as long for some sizes.)
_POINTWISE = Form(
    lambda layer, weight: onednn.pack_linear(weight.flatten(1)),
    lambda packed: onednn.unpack(packed)[:, :, None, None],
)

# Below so many input channels there is nothing to gain from another order. A model's first layer is of that
# kind, and always has its parameter: the dtype and the device of a model are told by it.
_FEW = 16


class Conv2d(KeepsWeight, nn.Conv2d):
    """A convolution of maps in channels-last order, in which all layers behind it stay.

    Latents and pictures, which are what has few channels, come out in the usual order.
    """

    def forward(self, x: Tensor) -> Tensor:
        form, packed = self.usual_form(), None
        if x.ndim == 4 and is_inference(x):
            x = x.contiguous(memory_format=torch.channels_last)
            packed = None if form is None else self.kept(form, x)
        if packed is None:
            y = super().forward(x)
        elif form is _POINTWISE:
            y = onednn.linear(x.movedim(1, -1), packed, self.bias).movedim(-1, 1)
        else:
            y = onednn.convolution(x, packed, self.bias, self.padding, self.stride, self.dilation)
        return y.contiguous() if self.out_channels < _FEW else y

    def usual_form(self) -> Form | None:
        is_pointwise = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)
        return None if self.in_channels < _FEW else _POINTWISE if is_pointwise else CONVOLUTION


def is_free(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nobody put something in a layer's place or listens to it: its work may be done elsewhere."""
    return type(layer) is kind and not has_hooks(layer)


_HALVES = Form(
    lambda layer, weight: [onednn.pack_linear(half) for half in weight.chunk(2)],
    lambda halves: torch.cat([onednn.unpack(half) for half in halves]),
)


class GEGLU(attention.GEGLU):
    """The gated activation, computed as a part of the products that it is made of."""

    def forward(self, x: Tensor) -> Tensor:
        proj: Any = self.proj
        halves = proj.kept(_HALVES, x) if is_free(proj, Linear) else None
        if halves is None:
            return super().forward(x)
        value_bias, gate_bias = proj.bias.chunk(2)
        gate = onednn.linear(x, halves[1], gate_bias, "gelu")
        return onednn.linear_times(x, halves[0], value_bias, gate)

    def pack(self) -> None:
        """Have the layer's weight in halves."""
        proj: Any = self.proj
        if is_free(proj, Linear):
            proj._keep(_HALVES)


class FeedForward(attention.FeedForward):
    """The two layers, over so many tokens at a time that what is between them stays in the cache."""

    TOKENS = 1024

    def forward(self, x: Tensor) -> Tensor:
        if not is_inference(x) or x.ndim != 3 or x.shape[0] * x.shape[1] <= self.TOKENS:
            return super().forward(x)
        tokens = x.flatten(0, 1)
        y = torch.empty_like(tokens)
        for part, result in zip(tokens.split(self.TOKENS), y.split(self.TOKENS), strict=True):
            result.copy_(self.net(part))
        return y.view(x.shape)


def _phases(layer: nn.Conv2d, weight: Tensor) -> Any:
    """For each of the four pixels that one becomes, the 2x2 kernel that sees the pixels around it.

    Two of three taps fall on the same pixel, so their weights add up.
    """
    taps = weight.float()
    kernels = []
    for rows in _merged(taps, 2):
        for kernel in _merged(rows, 3):
            kernels.append(onednn.pack_convolution(kernel.to(weight.dtype), [1, 1], [1, 1], [1, 1]))
    return kernels, weight  # the sums do not tell what they are of


def _merged(taps: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, middle, last = taps.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)


_PHASES = Form(_phases, lambda kept: kept[1])


class Upsample2D(layers.Upsample2D):
    """Twice the size by nearest neighbour, then a 3x3 convolution: four 2x2 ones at the size that comes in.

    That is 16 multiplications instead of 36 for the same sums.
    """

    def forward(self, x: Tensor, temb: Tensor | None = None, size: Any = None) -> Tensor:
        height, width = x.shape[2:]
        conv: Any = self.conv
        is_double = size is None or tuple(size) == (2 * height, 2 * width)
        kernels = None
        if is_double and is_free(conv, Conv2d) and is_inference(x):
            x = x.contiguous(memory_format=torch.channels_last)
            kernels = conv.kept(_PHASES, x)
        if kernels is None:
            return super().forward(x, temb, size)
        y = x.new_empty(len(x), 2 * height, 2 * width, conv.out_channels).permute(0, 3, 1, 2)
        self.fill(y, x, kernels[0])
        return y

    def pack(self) -> None:
        """Have the convolution's weight in phases."""
        conv: Any = self.conv
        if is_free(conv, Conv2d):
            conv._keep(_PHASES)

    def fill(self, y: Tensor, x: Tensor, kernels: Any) -> None:
        """Write what becomes of `x` into `y`."""
        write_phases(y, x, kernels, self.conv.bias, padding=[1, 1])


def write_phases(y: Tensor, x: Tensor, kernels: Any, bias: Tensor | None, padding: list[int]) -> None:
    """Each phase's pixels into every second row and column. Unpadded, `x` has a row more at each end."""
    height, width = y.shape[2] // 2, y.shape[3] // 2
    for index, kernel in enumerate(kernels):
        down, across = divmod(index, 2)
        phase = onednn.convolution(x, kernel, bias, padding, [1, 1], [1, 1])
        y[:, :, down::2, across::2] = phase[:, :, down : down + height, across : across + width]
