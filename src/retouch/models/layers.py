"""The small layers that every network here is made of: time embeddings, residual blocks, resampling.

Attribute names are the keys of published checkpoints. Tensors are (batch, channels, height, width) unless
a comment says otherwise. Attention has its own file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(
    values: Tensor, size: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Tensor:
    """Return sines and cosines of each value at `size / 2` frequencies, in float32: (n,) -> (n, size).

    At timestep 1000 half precision could not distinguish neighbouring timesteps, and even in float32 another
    order of these operations shows in the fourth decimal.
    """
    half = size // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values[:, None].float() * torch.exp(exponents / (half - freq_shift))[None]
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers that turn sinusoids into the time embedding of the residual blocks."""

    def __init__(self, in_channels: int, time_embed_dim: int, cond_proj_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)
        # Distilled models (LCM) get the guidance scale here instead of being run twice.
        self.cond_proj = None if cond_proj_dim is None else nn.Linear(cond_proj_dim, in_channels, bias=False)

    def forward(self, sinusoids: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None and self.cond_proj is not None:
            sinusoids = sinusoids + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class ImageProjection(nn.Module):
    """An image embedding as the tokens that a UNet attends to."""

    TOKENS = 32

    def __init__(self, image_dim: int, context_dim: int) -> None:
        super().__init__()
        self.image_embeds = nn.Linear(image_dim, self.TOKENS * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(self.image_embeds(image_embeds).unflatten(1, (self.TOKENS, -1)))


class ImageTimeEmbedding(nn.Module):
    """An image embedding as a summand of the time embedding."""

    def __init__(self, image_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(image_dim, time_embed_dim)
        self.image_norm = nn.LayerNorm(time_embed_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(image_embeds))


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut; the time embedding comes in at the middle.

    It is added before the second norm or, with `scale_shift`, scales and shifts what that norm returns.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int | None = None,
        *,
        groups: int,
        eps: float,
        scale_shift: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        width = 2 * out_channels if scale_shift else out_channels
        self.time_emb_proj = None if temb_channels is None else nn.Linear(temb_channels, width)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None, size: Sequence[int] | None = None) -> Tensor:
        h = self.conv1(self.resized(F.silu(self.norm1(x)), size))
        x = self.resized(x, size)
        if temb is None or self.time_emb_proj is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = self.time_emb_proj(F.silu(temb))[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time_emb_proj(F.silu(temb))[:, :, None, None])
        h = self.conv2(F.silu(h))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h

    def resized(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        """Return the input and its shortcut at the output's resolution: here the same."""
        return x


class DownResnetBlock2D(ResnetBlock2D):
    """A residual block that halves height and width on the way by averaging."""

    def resized(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True)  # of an odd size, the last row and column stay


class UpResnetBlock2D(ResnetBlock2D):
    """A residual block that doubles height and width, or reaches `size`, on the way."""

    def resized(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        return _enlarged(x, size)


def _enlarged(x: Tensor, size: Sequence[int] | None) -> Tensor:
    height, width = (2 * x.shape[-2], 2 * x.shape[-1]) if size is None else size
    return F.interpolate(x, size=(height, width), mode="nearest")


class Downsample2D(nn.Module):
    """Halve height and width by a strided convolution. The time embedding is not used."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        # The VAE was trained with padding on the right and at the bottom only, which its configs call 0.
        self.pads_one_side = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pads_one_side else x)


class Upsample2D(nn.Module):
    """Double height and width, or reach `size`, by nearest neighbour; then convolve. No time embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, temb: Tensor | None = None, size: Sequence[int] | None = None) -> Tensor:
        return self.conv(_enlarged(x, size))
