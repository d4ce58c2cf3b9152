"""Autoencoder layers that work on large feature maps in bands of rows: less memory, better use of the cache.

The result equals that of the whole map. A group norm needs statistics of all rows, which are computed in a
separate pass; the convolution of a band reads one more row on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.kernels.cpu import layers, onednn
from retouch.kernels.cpu.allocator import releasing_memory
from retouch.kernels.cpu.layers import CONVOLUTION, Conv2d, can_bypass, write_phases
from retouch.kernels.cpu.packed_weights import has_hooks, is_inference
from retouch.models import autoencoder
from retouch.models.layers import ResnetBlock2D as PlainResnetBlock2D

LARGE = 2**24  # values in a map from which layers work in bands; a UNet's maps are smaller
HUGE = 2**27  # values in a map from which freed memory is released during the call
BAND = 2**20  # values in a band
# How many values can be summed in float32 before the mean loses digits that this dtype shows.
SUMMED = {torch.float32: 2**18, torch.bfloat16: 2**21}


def is_large(x: Tensor) -> bool:
    """Return whether layers work on this map in bands."""
    return x.ndim == 4 and x.numel() >= LARGE and is_inference(x)


def bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the first row of each band, and the row after its last."""
    rows = max(1, BAND // (x.numel() // x.shape[2]))
    for top in range(0, x.shape[2], rows):
        yield top, min(top + rows, x.shape[2])


class Statistics(NamedTuple):
    """Mean and variance of each channel's group in one picture."""

    mean: Tensor
    variance: Tensor


def statistics(x: Tensor, norm: nn.GroupNorm) -> list[Statistics]:
    """Compute the statistics of each picture of a batch, in float32.

    torch's own group norm of channels-last maps sums all squares in float32, which loses digits. Here a batch
    norm computes mean and variance of a few rows at a time, and those are combined in float64.
    """
    return [_statistics(picture, norm.num_groups) for picture in x.split(1)]


def _statistics(picture: Tensor, groups: int) -> Statistics:
    _, channels, height, _ = picture.shape
    rows = max(1, SUMMED[picture.dtype] // (picture.numel() // height))
    # Running statistics in float32 make it return float32; with momentum 0 it does not change them.
    running = torch.zeros(channels), torch.ones(channels)
    parts = [torch.batch_norm_update_stats(part, *running, 0.0) for part in picture.split(rows, 2)]
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
    """Normalise rows of a picture by the statistics of all of it, as a batch norm does."""
    weight, bias = (None if given is None else given.float() for given in (norm.weight, norm.bias))
    return F.batch_norm(picture, *found, weight, bias, eps=norm.eps)


class GroupNorm(nn.GroupNorm):
    """A group norm whose statistics stay precise for large maps."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_large(x):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        found = statistics(x, self)
        parts = [normed(picture, each, self) for picture, each in zip(x.split(1), found, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class ResnetBlock2D(PlainResnetBlock2D):
    """A residual block that holds only its input and one more map if they are large."""

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
        can_bypass(norm, GroupNorm)
        and can_bypass(conv, Conv2d)
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
    """Compute norm, SiLU and a 3x3 convolution, and add `plus(top, end)` to each band.

    With `in_place` the result is written over `x`.
    """
    packed = conv.packed_weight(CONVOLUTION, x)
    if packed is None:  # other code refers to the weight
        y = conv(F.silu(norm(x)))
        return y if plus is None else y + plus(0, y.shape[2])
    found = statistics(x, norm)
    batch, channels, height, width = x.shape
    y = x if in_place else _empty_map(x, channels=conv.out_channels)
    above = x.new_zeros(batch, width, 1, channels).permute(0, 3, 2, 1)
    read = 0  # rows read so far; the next band needs the last two again
    for top, end in bands(x):
        ahead = min(end + 1, height)
        seen = _empty_map(x, rows=above.shape[2] + (ahead - read) + (end == height))
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


def _empty_map(x: Tensor, *, rows: int | None = None, channels: int | None = None) -> Tensor:
    """Return an empty map in channels-last order, like `x` except for the number of rows or channels."""
    height, width = x.shape[2:]
    return x.new_empty(len(x), rows or height, width, channels or x.shape[1]).permute(0, 3, 1, 2)


class Upsample2D(layers.Upsample2D):
    """Upsampling and a convolution, in bands of rows for large maps."""

    def fill(self, y: Tensor, x: Tensor, kernels: Any) -> None:
        if not is_large(x):
            return super().fill(y, x, kernels)
        height = x.shape[2]
        for top, end in bands(x):
            first, last = max(top - 1, 0), min(end + 1, height)
            seen = _empty_map(x, rows=end - top + 2)
            seen[:, :, first - top + 1 : last - top + 1] = x[:, :, first:last]
            if top == 0:
                seen[:, :, :1] = 0
            if end == height:
                seen[:, :, -1:] = 0
            write_phases(y[:, :, 2 * top : 2 * end], seen, kernels, self.conv.bias, padding=[0, 1])


class Decoder(autoencoder.Decoder):
    """A decoder that frees each layer's input as soon as the layer has read it, unlike a call's arguments."""

    def forward(self, x: Tensor) -> Tensor:
        blocks: Any = self.up_blocks
        layers_below = [(*block.resnets, *block.upsamplers) for block in blocks]
        halvings = sum(bool(block.upsamplers) for block in blocks)
        values = len(x) * self.conv_norm_out.num_channels * x.shape[2] * x.shape[3] * 4**halvings
        if values < LARGE or not is_inference(x) or any(map(has_hooks, blocks)):
            return super().forward(x)
        with nullcontext() if values < HUGE else releasing_memory():
            x = self.mid_block(self.conv_in(x))
            for layer in chain.from_iterable(layers_below):
                x = layer(x)
            if is_large(x) and _simple(self.conv_norm_out, self.conv_out):
                x = x.contiguous(memory_format=torch.channels_last)
                return _normed_convolution(x, self.conv_norm_out, self.conv_out).contiguous()
            return self.conv_out(F.silu(self.conv_norm_out(x)))
