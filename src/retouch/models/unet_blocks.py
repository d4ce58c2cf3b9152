"""The blocks of a UNet: one per resolution on the way down, one in the middle, one each on the way up.

A block is built from a `Level` and found by the name that configs use. Every block takes the same arguments,
whether it attends to the text or not, so the UNet need not know which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retouch.models.attention import Transformer2DModel
from retouch.models.layers import Downsample2D, ResnetBlock2D, Upsample2D


@dataclass(frozen=True)
class Level:
    """One resolution of a UNet, from which its blocks on the way down and on the way up are built."""

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
    heads: int
    transformer_layers: int
    cross_attention_dim: int
    use_linear_projection: bool
    only_cross_attention: bool

    def resnet(self, in_channels: int) -> ResnetBlock2D:
        return ResnetBlock2D(in_channels, self.channels, self.temb_channels, groups=self.groups, eps=self.eps)

    def transformer(self, only_cross_attention: bool) -> Transformer2DModel:
        return Transformer2DModel(
            self.channels,
            heads=self.heads,
            num_layers=self.transformer_layers,
            cross_attention_dim=self.cross_attention_dim,
            groups=self.groups,
            use_linear_projection=self.use_linear_projection,
            only_cross_attention=only_cross_attention,
        )


class DownBlock2D(nn.Module):
    """Residual blocks, then half the resolution. What each leaves is kept for the way up."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        channels = (level.above, *[level.channels] * (level.layers - 1))
        self.resnets = nn.ModuleList(level.resnet(count) for count in channels)
        self.downsamplers = nn.ModuleList()
        if not level.is_coarsest:
            self.downsamplers.append(Downsample2D(level.channels, level.downsample_padding))

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = []
        for resnet in self.resnets:
            x = resnet(x, temb)
            kept.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            kept.append(x)
        return x, tuple(kept)


class CrossAttnDownBlock2D(DownBlock2D):
    """The same with a transformer after each residual block."""

    def __init__(self, level: Level) -> None:
        super().__init__(level)
        self.attentions = nn.ModuleList(level.transformer(level.only_cross_attention) for _ in self.resnets)

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, temb), text)
            kept.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            kept.append(x)
        return x, tuple(kept)


class UNetMidBlock2D(nn.Module):
    """One residual block at the coarsest resolution: the middle of SDXL's small ControlNets."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([level.resnet(level.channels)])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        (resnet,) = self.resnets
        return resnet(x, temb)


class UNetMidBlock2DCrossAttn(nn.Module):
    """A transformer between two residual blocks, at the coarsest resolution."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(2))
        self.attentions = nn.ModuleList([level.transformer(only_cross_attention=False)])

    def forward(self, x: Tensor, temb: Tensor, text: Tensor) -> Tensor:
        first, last = self.resnets
        (attention,) = self.attentions
        return last(attention(first(x, temb), text), temb)


class UpBlock2D(nn.Module):
    """Residual blocks, each joined by the last of what the way down has kept; then twice the resolution."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        incoming = (level.below, *[level.channels] * level.layers)
        skipped = (*[level.channels] * level.layers, level.above)
        self.resnets = nn.ModuleList(
            level.resnet(count + skip) for count, skip in zip(incoming, skipped, strict=True)
        )
        self.upsamplers = nn.ModuleList()
        if not level.is_finest:
            self.upsamplers.append(Upsample2D(level.channels))

    def forward(self, x: Tensor, temb: Tensor, text: Tensor, kept: list[Tensor]) -> Tensor:
        for resnet in self.resnets:
            x = resnet(torch.cat([x, kept.pop()], dim=1), temb)
        for upsample in self.upsamplers:
            x = upsample(x, kept[-1].shape[-2:])  # an odd size is not twice its half
        return x


class CrossAttnUpBlock2D(UpBlock2D):
    """The same with a transformer after each residual block."""

    def __init__(self, level: Level) -> None:
        super().__init__(level)
        self.attentions = nn.ModuleList(level.transformer(level.only_cross_attention) for _ in self.resnets)

    def forward(self, x: Tensor, temb: Tensor, text: Tensor, kept: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, kept.pop()], dim=1), temb), text)
        for upsample in self.upsamplers:
            x = upsample(x, kept[-1].shape[-2:])
        return x


DOWN_BLOCKS: dict[str, Callable[[Level], nn.Module]] = {
    "DownBlock2D": DownBlock2D,
    "CrossAttnDownBlock2D": CrossAttnDownBlock2D,
}
MID_BLOCKS: dict[str, Callable[[Level], nn.Module]] = {
    "UNetMidBlock2D": UNetMidBlock2D,
    "UNetMidBlock2DCrossAttn": UNetMidBlock2DCrossAttn,
}
UP_BLOCKS: dict[str, Callable[[Level], nn.Module]] = {
    "UpBlock2D": UpBlock2D,
    "CrossAttnUpBlock2D": CrossAttnUpBlock2D,
}
