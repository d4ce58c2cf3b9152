"""Large feature maps, as an autoencoder has them, in bands of rows: less memory, and better use of the cache.

The result is that of the whole map. A norm needs statistics of all rows, which are gathered in a pass of
their own; a convolution of a band sees one row more on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.models import autoencoder
from retouch.models.layers import ResnetBlock2D as PlainResnetBlock2D
from retouch.models.prepared import layers, onednn
from retouch.models.prepared.allocator import giving_back
from retouch.models.prepared.layers import CONVOLUTION, Conv2d, is_free, write_phases
from retouch.models.prepared.weights import has_hooks, is_inference

LARGE = 2**24  # values in a map; a UNet's are smaller
HUGE = 2**27  # in a map that counts by itself in the memory of a process
BAND = 2**20  # values in a band
# Values of a map whose mean, summed in float32, has the digits that this dtype can show.
SUMMED = {torch.float32: 2**18, torch.bfloat16: 2**21}


def is_large(x: Tensor) -> bool:
    """Whether a call with this map goes by bands."""
    return x.ndim == 4 and x.numel() >= LARGE and is_inference(x)


def bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first row of each band, and the one behind its last."""
    rows = max(1, BAND // (x.numel() // x.shape[2]))
    for top in range(0, x.shape[2], rows):
        yield top, min(top + rows, x.shape[2])


class Statistics(NamedTuple):
    """What a group norm takes off each channel of a picture, and the square of what it divides it by."""

    mean: Tensor
    variance: Tensor


def statistics(x: Tensor, norm: nn.GroupNorm) -> list[Statistics]:
    """Those of each picture of a batch, in float32.

    torch's own norm of this order of memory sums squares of everything, which loses digits. Here a batch norm
    tells mean and variance of a few rows at a time, and those are put together in float64.
    """
    return [_statistics(picture, norm.num_groups) for picture in x.split(1)]


def _statistics(picture: Tensor, groups: int) -> Statistics:
    _, channels, height, _ = picture.shape
    rows = max(1, SUMMED[picture.dtype] // (picture.numel() // height))
    # Given so that what it tells is float32; without momentum it leaves them alone.
    before = torch.zeros(channels), torch.ones(channels)
    parts = [torch.batch_norm_update_stats(part, *before, 0.0) for part in picture.split(rows, 2)]
    counts = torch.tensor([part.shape[2] for part in picture.split(rows, 2)], dtype=torch.float64)
    shares = (counts / height / (channels // groups))[:, None, None]
    means, variances = (
        torch.stack(values).double().unflatten(1, (groups, -1)) for values in zip(*parts, strict=True)
    )
    mean = (shares * means).sum((0, 2), keepdim=True)
    variance = (shares * (variances + (means - mean).square())).sum((0, 2))
    each = channels // groups
    return Statistics(
        mean.flatten().repeat_interleave(each).float(), variance.repeat_interleave(each).float()
    )


def normed(picture: Tensor, found: Statistics, norm: nn.GroupNorm) -> Tensor:
    """Rows of a picture, normed by what was found of all of it: then that is a batch norm."""
    weight, bias = (None if given is None else given.float() for given in (norm.weight, norm.bias))
    return F.batch_norm(picture, *found, weight, bias, eps=norm.eps)


class GroupNorm(nn.GroupNorm):
    """A group norm whose statistics keep their digits, however large the map."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_large(x):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        found = statistics(x, self)
        parts = [normed(picture, each, self) for picture, each in zip(x.split(1), found, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class ResnetBlock2D(PlainResnetBlock2D):
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
    found = statistics(x, norm)
    batch, channels, height, width = x.shape
    y = x if in_place else _room(x, channels=conv.out_channels)
    above = x.new_zeros(batch, width, 1, channels).permute(0, 3, 2, 1)
    read = 0  # rows that went in so far; the last two of them are needed again
    for top, end in bands(x):
        ahead = min(end + 1, height)
        seen = _room(x, rows=above.shape[2] + (ahead - read) + (end == height))
        seen[:, :, : above.shape[2]] = above
        active = seen[:, :, above.shape[2] : above.shape[2] + ahead - read]
        for picture, place, each in zip(x[:, :, read:ahead].split(1), active.split(1), found, strict=True):
            torch.ops.aten.silu.out(normed(picture, each, norm), out=place)
        if end == height:
            seen[:, :, -1:] = 0
        result = onednn.convolution(seen, packed, conv.bias, [0, 1], [1, 1], [1, 1])
        y[:, :, top:end] = result if plus is None else result.add_(plus(top, end))
        above, read = seen[:, :, -2:], ahead
    return y


def _room(x: Tensor, *, rows: int | None = None, channels: int | None = None) -> Tensor:
    """Room for a map in channels-last order, like `x` but for the number of rows or channels."""
    height, width = x.shape[2:]
    return x.new_empty(len(x), rows or height, width, channels or x.shape[1]).permute(0, 3, 1, 2)


class Upsample2D(layers.Upsample2D):
    """Twice the size and a convolution, of a large map by bands of rows."""

    def fill(self, y: Tensor, x: Tensor, kernels: Any) -> None:
        if not is_large(x):
            return super().fill(y, x, kernels)
        height = x.shape[2]
        for top, end in bands(x):
            first, last = max(top - 1, 0), min(end + 1, height)
            seen = _room(x, rows=end - top + 2)
            seen[:, :, first - top + 1 : last - top + 1] = x[:, :, first:last]
            if top == 0:
                seen[:, :, :1] = 0
            if end == height:
                seen[:, :, -1:] = 0
            write_phases(y[:, :, 2 * top : 2 * end], seen, kernels, self.conv.bias, padding=[0, 1])


class Decoder(autoencoder.Decoder):
    """A decoder whose layers' inputs are gone as soon as they have been read, unlike a call's arguments."""

    def forward(self, x: Tensor) -> Tensor:
        blocks: Any = self.up_blocks
        layers_below = [(*block.resnets, *block.upsamplers) for block in blocks]
        halvings = sum(bool(block.upsamplers) for block in blocks)
        values = len(x) * self.conv_norm_out.num_channels * x.shape[2] * x.shape[3] * 4**halvings
        if values < LARGE or not is_inference(x) or any(map(has_hooks, blocks)):
            return super().forward(x)
        with nullcontext() if values < HUGE else giving_back():
            x = self.mid_block(self.conv_in(x))
            for layer in chain.from_iterable(layers_below):
                x = layer(x)
            if is_large(x) and _simple(self.conv_norm_out, self.conv_out):
                x = x.contiguous(memory_format=torch.channels_last)
                return _normed_convolution(x, self.conv_norm_out, self.conv_out).contiguous()
            return self.conv_out(F.silu(self.conv_norm_out(x)))
