"""Large feature maps, as an autoencoder has them, in bands of rows: less memory, and better use of the cache.

The result is that of the whole map. A norm needs statistics of all rows, which are gathered in a pass of
their own; a convolution of a band sees one row more on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.models import layers
from retouch.models.prepared import onednn
from retouch.models.prepared.layers import CONVOLUTION, Conv2d, is_free
from retouch.models.prepared.weights import is_inference

LARGE = 2**24  # values in a map; a UNet's are smaller
BAND = 2**21  # values in a band


def is_large(x: Tensor) -> bool:
    """Whether a call with this map goes by bands."""
    return x.ndim == 4 and x.numel() >= LARGE and is_inference(x)


def bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first row of each band, and the one behind its last."""
    rows = max(1, BAND // (x.numel() // x.shape[2]))
    for top in range(0, x.shape[2], rows):
        yield top, min(top + rows, x.shape[2])


def factors(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """By what a group norm multiplies the values of each channel, and what it adds: (batch, channels, 1, 1).

    torch's own norm of this order of memory sums squares in float32, which of so many values loses digits.
    Here the values are shifted to about zero first, and the bands' sums are added in float64.
    """
    batch, channels, height, width = x.shape
    about = x[:, :, height // 2].float().mean(-1)[:, :, None, None]
    total = torch.zeros(2, batch, channels, dtype=torch.float64)
    for top, end in bands(x):
        away = x[:, :, top:end] - about  # in float32
        total[0] += away.sum((2, 3))
        total[1] += away.square_().sum((2, 3))
    count = height * width
    mean = total[0] / count
    variance = total[1] / count - mean.square()
    mean += about.flatten(1)

    def by_group(values: Tensor) -> Tensor:
        return values.unflatten(1, (norm.num_groups, -1))

    group_mean = by_group(mean).mean(2, keepdim=True)
    spread = by_group(variance) + (by_group(mean) - group_mean).square()
    scale = (spread.mean(2, keepdim=True) + norm.eps).rsqrt().expand_as(by_group(mean)).flatten(1)
    shift = -group_mean.expand_as(by_group(mean)).flatten(1) * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale.float()[:, :, None, None], shift.float()[:, :, None, None]


class GroupNorm(nn.GroupNorm):
    """A group norm whose statistics keep their digits, however large the map."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_large(x):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        scale, shift = factors(x, self)
        y = torch.empty_like(x)
        for top, end in bands(x):
            y[:, :, top:end] = torch.addcmul(shift, x[:, :, top:end], scale)
        return y


class ResnetBlock2D(layers.ResnetBlock2D):
    """A residual block that holds, of a large map, its input and one map more."""

    def forward(self, x: Tensor, temb: Tensor | None = None, size: Any = None) -> Tensor:
        first, second = _simple(self.norm1, self.conv1), _simple(self.norm2, self.conv2)
        if temb is not None or not is_large(x) or not first or not second:
            return super().forward(x, temb, size)
        x = x.contiguous(memory_format=torch.channels_last)
        shortcut = self.conv_shortcut

        def incoming(top: int, end: int) -> Tensor:
            rows = x[:, :, top:end]
            return rows if shortcut is None else shortcut(rows)

        h = _normed_convolution(x, self.norm1, self.conv1)
        return _normed_convolution(h, self.norm2, self.conv2, in_place=True, plus=incoming)


def _simple(norm: nn.Module, conv: Any) -> bool:
    return (
        is_free(norm, GroupNorm)
        and is_free(conv, Conv2d)
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    )


def _normed_convolution(
    x: Tensor,
    norm: nn.GroupNorm,
    conv: Any,
    *,
    in_place: bool = False,
    plus: Callable[[int, int], Tensor] | None = None,
) -> Tensor:
    """Norm, SiLU and a 3x3 convolution, into `x` itself if `in_place`, and `plus` of each band added."""
    packed = conv.kept(CONVOLUTION, x)
    if packed is None:  # somebody holds the weight
        y = conv(F.silu(norm(x)))
        return y if plus is None else y + plus(0, y.shape[2])
    scale, shift = factors(x, norm)
    batch, channels, height, width = x.shape
    zeros = x.new_zeros(batch, width, 1, channels).permute(0, 3, 2, 1)  # channels-last
    y = x if in_place else _empty_like(x, conv.out_channels)
    active, read = zeros, 0  # two rows of the band before, which this one needs too
    for top, end in bands(x):
        ahead = min(end + 1, height)
        fresh = F.silu(torch.addcmul(shift, x[:, :, read:ahead], scale), inplace=True).to(x.dtype)
        parts = [active, fresh] if end < height else [active, fresh, zeros]
        seen = torch.cat(parts, dim=2).contiguous(memory_format=torch.channels_last)
        result = onednn.convolution(seen, packed, conv.bias, [0, 1], [1, 1], [1, 1])
        y[:, :, top:end] = result if plus is None else result.add_(plus(top, end))
        active, read = seen[:, :, -2:], ahead
    return y


def _empty_like(x: Tensor, channels: int) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
