"""The blocks of a UNet: for each resolution one in the encoder and one in the decoder, and one in the middle.

A block is built from a `Level` and found by the name that configs use. All blocks take the same arguments,
whether they attend to a context (the text's states, or those of an image embedding) or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retouch.models.attention import AddedContextAttention, Transformer2DModel
from retouch.models.layers import (
    DownResnetBlock2D,
    Downsample2D,
    ResnetBlock2D,
    UpResnetBlock2D,
    Upsample2D,
)


@dataclass(frozen=True)
class Level:
    """One resolution of a UNet, from which its encoder block and its decoder block are built."""

    above: int  # channels that come in from the next finer level
    channels: int
    below: int  # channels that come back from the next coarser level
    is_finest: bool
    is_coarsest: bool
    temb_channels: int
    layers: int
    groups: int
    eps: float
    downsample_padding: int
    # Published configs use it for two numbers: the heads of a transformer, and the width of a head in the
    # simple attention blocks.
    attention_head_dim: int
    transformer_layers: int
    cross_attention_dim: int
    use_linear_projection: bool
    only_cross_attention: bool
    scale_shift: bool

    def resnet(self, in_channels: int, kind: type[ResnetBlock2D] = ResnetBlock2D) -> ResnetBlock2D:
        return kind(
            in_channels,
            self.channels,
            self.temb_channels,
            groups=self.groups,
            eps=self.eps,
            scale_shift=self.scale_shift,
        )

    def transformer(self, only_cross_attention: bool) -> Transformer2DModel:
        return Transformer2DModel(
            self.channels,
            heads=self.attention_head_dim,
            num_layers=self.transformer_layers,
            cross_attention_dim=self.cross_attention_dim,
            groups=self.groups,
            use_linear_projection=self.use_linear_projection,
            only_cross_attention=only_cross_attention,
        )

    def simple_attention(self) -> AddedContextAttention:
        return AddedContextAttention(
            self.channels,
            self.cross_attention_dim,
            heads=self.channels // self.attention_head_dim,
            dim_head=self.attention_head_dim,
            groups=self.groups,
        )


class DownBlock2D(nn.Module):
    """Residual blocks, then half the resolution. Each output is kept for the decoder."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        channels = (level.above, *[level.channels] * (level.layers - 1))
        self.resnets = nn.ModuleList(level.resnet(count) for count in channels)
        self.downsamplers = nn.ModuleList([] if level.is_coarsest else [self.new_downsampler(level)])

    def new_downsampler(self, level: Level) -> nn.Module:
        return Downsample2D(level.channels, level.downsample_padding)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = []
        for resnet in self.resnets:
            x = resnet(x, temb)
            kept.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, temb)
            kept.append(x)
        return x, tuple(kept)


class ResnetDownsampleBlock2D(DownBlock2D):
    """A DownBlock2D with a residual block to halve the resolution."""

    def new_downsampler(self, level: Level) -> nn.Module:
        return level.resnet(level.channels, DownResnetBlock2D)


class CrossAttnDownBlock2D(DownBlock2D):
    """A block with a transformer after each residual block."""

    def __init__(self, level: Level) -> None:
        super().__init__(level)
        self.attentions = nn.ModuleList(self.new_attention(level) for _ in self.resnets)

    def new_attention(self, level: Level) -> nn.Module:
        return level.transformer(level.only_cross_attention)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, temb), context)
            kept.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, temb)
            kept.append(x)
        return x, tuple(kept)


class SimpleCrossAttnDownBlock2D(ResnetDownsampleBlock2D, CrossAttnDownBlock2D):
    """Residual blocks that also resample, with attention (no whole transformer) after each."""

    def new_attention(self, level: Level) -> nn.Module:
        return level.simple_attention()


class UNetMidBlock2D(nn.Module):
    """One residual block at the coarsest resolution: the middle of SDXL's small ControlNets."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([level.resnet(level.channels)])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        (resnet,) = self.resnets
        return resnet(x, temb)


class UNetMidBlock2DCrossAttn(nn.Module):
    """A transformer between two residual blocks, at the coarsest resolution."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(2))
        self.attentions = nn.ModuleList([self.new_attention(level)])

    def new_attention(self, level: Level) -> nn.Module:
        return level.transformer(only_cross_attention=False)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        first, last = self.resnets
        (attention,) = self.attentions
        return last(attention(first(x, temb), context), temb)


class UNetMidBlock2DSimpleCrossAttn(UNetMidBlock2DCrossAttn):
    """Attention (no whole transformer) between two residual blocks, at the coarsest resolution."""

    def new_attention(self, level: Level) -> nn.Module:
        return level.simple_attention()


class UpBlock2D(nn.Module):
    """Residual blocks, each joined by the last output that the encoder kept; then twice the resolution."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        incoming = (level.below, *[level.channels] * level.layers)
        skipped = (*[level.channels] * level.layers, level.above)
        self.resnets = nn.ModuleList(
            level.resnet(count + skip) for count, skip in zip(incoming, skipped, strict=True)
        )
        self.upsamplers = nn.ModuleList([] if level.is_finest else [self.new_upsampler(level)])

    def new_upsampler(self, level: Level) -> nn.Module:
        return Upsample2D(level.channels)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor, kept: list[Tensor]) -> Tensor:
        for resnet in self.resnets:
            x = resnet(torch.cat([x, kept.pop()], dim=1), temb)
        for upsample in self.upsamplers:
            x = upsample(x, temb, kept[-1].shape[-2:])  # an odd size is not twice its half
        return x


class ResnetUpsampleBlock2D(UpBlock2D):
    """An UpBlock2D with a residual block to double the resolution."""

    def new_upsampler(self, level: Level) -> nn.Module:
        return level.resnet(level.channels, UpResnetBlock2D)


class CrossAttnUpBlock2D(UpBlock2D):
    """A block with a transformer after each residual block."""

    def __init__(self, level: Level) -> None:
        super().__init__(level)
        self.attentions = nn.ModuleList(self.new_attention(level) for _ in self.resnets)

    def new_attention(self, level: Level) -> nn.Module:
        return level.transformer(level.only_cross_attention)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor, kept: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, kept.pop()], dim=1), temb), context)
        for upsample in self.upsamplers:
            x = upsample(x, temb, kept[-1].shape[-2:])
        return x


class SimpleCrossAttnUpBlock2D(ResnetUpsampleBlock2D, CrossAttnUpBlock2D):
    """Residual blocks that also resample, with attention (no whole transformer) after each."""

    def new_attention(self, level: Level) -> nn.Module:
        return level.simple_attention()


def _by_name(*blocks: Callable[[Level], nn.Module]) -> dict[str, Callable[[Level], nn.Module]]:
    return {block.__name__: block for block in blocks}


DOWN_BLOCKS = _by_name(DownBlock2D, CrossAttnDownBlock2D, ResnetDownsampleBlock2D, SimpleCrossAttnDownBlock2D)
MID_BLOCKS = _by_name(UNetMidBlock2D, UNetMidBlock2DCrossAttn, UNetMidBlock2DSimpleCrossAttn)
UP_BLOCKS = _by_name(UpBlock2D, CrossAttnUpBlock2D, ResnetUpsampleBlock2D, SimpleCrossAttnUpBlock2D)
