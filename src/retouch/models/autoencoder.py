"""The autoencoder between pixels and latents that Stable Diffusion and SDXL share.

It returns unscaled latents. The caller scales and shifts them by the config's factors, and chooses the dtype
where `config.force_upcast` says that half precision overflows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.devices import randn
from retouch.errors import ConfigError
from retouch.models.attention import SpatialAttention
from retouch.models.layers import Downsample2D, ResnetBlock2D, Upsample2D

_EPS = 1e-6

_SPELLED_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
_ATTENTION_WEIGHT = re.compile(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")


@dataclass(frozen=True)
class CoderConfig(Config):
    """Common settings of the autoencoders, with the names and defaults of published config.json files.

    Tuples list one value for each level, in the order in which pixels or latents pass the levels. The
    channels start at the finest level.
    """

    neutral: ClassVar = {"act_fn": "silu"}
    supported_blocks: ClassVar[Mapping[str, tuple[str, ...]]]

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    # For the caller that scales latents.
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        for key, supported in self.supported_blocks.items():
            names, count = getattr(self, key), len(self.block_out_channels)
            if not set(names) <= set(supported) or len(names) != count:
                raise ConfigError(
                    f"{key} = {names!r} is not supported by {type(self).__name__.removesuffix('Config')}. "
                    f"Supported: {' and '.join(supported)}, one for each of block_out_channels = "
                    f"{self.block_out_channels}. Use a checkpoint made of those.",
                    parameter=key,
                )


@dataclass(frozen=True)
class AutoencoderKLConfig(CoderConfig):
    """The settings, with the names and defaults of published config.json files."""

    supported_blocks: ClassVar = {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }

    latent_channels: int = 4
    # The side of a tile in pixels, if tiling is enabled.
    sample_size: int | tuple[int, int] = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    # For the callers that scale latents and choose a dtype.
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True


class DownEncoderBlock2D(nn.Module):
    """Residual blocks, then half the resolution."""

    def __init__(self, in_channels: int, channels: int, *, layers: int, groups: int, is_last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, channels, layers, groups)
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample2D(channels, padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class AttnDownEncoderBlock2D(DownEncoderBlock2D):
    """Residual blocks, each with attention among all pixels, then half the resolution."""

    def __init__(self, in_channels: int, channels: int, *, layers: int, groups: int, is_last: bool) -> None:
        super().__init__(in_channels, channels, layers=layers, groups=groups, is_last=is_last)
        self.attentions = nn.ModuleList(
            SpatialAttention(channels, groups=groups, eps=_EPS) for _ in self.resnets
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x))
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


_DOWN_BLOCKS = {block.__name__: block for block in (DownEncoderBlock2D, AttnDownEncoderBlock2D)}


class UpDecoderBlock2D(nn.Module):
    """Residual blocks, then twice the resolution."""

    def __init__(self, in_channels: int, channels: int, *, layers: int, groups: int, is_last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, channels, layers, groups)
        self.upsamplers = nn.ModuleList([] if is_last else [Upsample2D(channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class UNetMidBlock2D(nn.Module):
    """Attention among all pixels, between two residual blocks."""

    def __init__(self, channels: int, *, groups: int, add_attention: bool) -> None:
        super().__init__()
        self.resnets = _resnets(channels, channels, 2, groups)
        self.attentions = nn.ModuleList(
            [SpatialAttention(channels, groups=groups, eps=_EPS)] if add_attention else []
        )

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return last(x)


def _resnets(in_channels: int, channels: int, count: int, groups: int) -> nn.ModuleList:
    incoming = (in_channels, *[channels] * (count - 1))
    return nn.ModuleList(ResnetBlock2D(each, channels, groups=groups, eps=_EPS) for each in incoming)


class Encoder(nn.Module):
    """Pixels to `out_channels` at the coarsest resolution: latents, or their mean and variance."""

    def __init__(self, config: CoderConfig, out_channels: int) -> None:
        super().__init__()
        channels, groups, layers = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _DOWN_BLOCKS[name](
                channels[max(index - 1, 0)], width, layers=layers, groups=groups, is_last=index == last
            )
            for index, (name, width) in enumerate(zip(config.down_block_types, channels, strict=True))
        )
        self.mid_block = UNetMidBlock2D(
            channels[-1], groups=groups, add_attention=config.mid_block_add_attention
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to pixels; the encoder backwards, with one more residual block per level."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        layers, last = config.layers_per_block + 1, len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(
            channels[0], groups=groups, add_attention=config.mid_block_add_attention
        )
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                channels[max(index - 1, 0)], width, layers=layers, groups=groups, is_last=index == last
            )
            for index, width in enumerate(channels)
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class DiagonalGaussianDistribution:
    """The distribution of a picture's latents: an independent normal distribution for each value."""

    def __init__(self, parameters: Tensor) -> None:
        self.mean, log_variance = parameters.chunk(2, dim=1)
        self.logvar = log_variance.clamp(-30, 20)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """Draw latents, with one generator for all rows or one for each."""
        mean = self.mean
        return mean + self.std * randn(mean.shape, generator, device=mean.device, dtype=mean.dtype)

    def mode(self) -> Tensor:
        """Return the most likely latents."""
        return self.mean


class AutoencoderKLOutput(NamedTuple):
    """The result. It is also a tuple of one, as callers with `return_dict=False` expect."""

    latent_dist: DiagonalGaussianDistribution


class DecoderOutput(NamedTuple):
    """The result. It is also a tuple of one, as callers with `return_dict=False` expect."""

    sample: Tensor


class InParts:
    """Base of the autoencoders: tiling limits memory for large pictures, slicing for large batches."""

    use_tiling = False
    use_slicing = False
    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_overlap_factor = 0.25
    config: Any

    @property
    def scale_factor(self) -> int:
        """The number of pixels for each latent along a side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def enable_tiling(self) -> None:
        """Process pictures larger than a tile in overlapping tiles from now on.

        Encoding takes tiles of `tile_sample_min_size` pixels, decoding of `tile_latent_min_size` latents.
        """
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Process whole pictures again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Process one picture of a batch at a time from now on."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Process whole batches again."""
        self.use_slicing = False

    def _encode_in_parts(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        factor = self.scale_factor
        return self._in_parts(run, x, self.tile_sample_min_size // factor, (factor, 1))

    def _decode_in_parts(self, run: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        return self._in_parts(run, z, self.tile_latent_min_size, (1, self.scale_factor))

    def _in_parts(
        self, run: Callable[[Tensor], Tensor], x: Tensor, tile: int, units: tuple[int, int]
    ) -> Tensor:
        rows, tile = x.split(1) if self.use_slicing else (x,), max(tile, 1)
        if self.use_tiling and max(x.shape[-2:]) > tile * units[0]:
            return torch.cat([tiled(run, row, tile, units, self.tile_overlap_factor) for row in rows])
        return torch.cat([run(row) for row in rows]) if len(rows) > 1 else run(x)


class AutoencoderKL(InParts, Pretrained, nn.Module):
    """Encoder and decoder, with a normal distribution of latents between them."""

    config_class = AutoencoderKLConfig
    config: AutoencoderKLConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = AutoencoderKLConfig.from_dict(settings)
        latent = config.latent_channels
        # The mean and the logarithm of the variance of each latent.
        self.encoder = Encoder(config, 2 * latent)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else nn.Identity()
        side = config.sample_size
        self.tile_sample_min_size = side[0] if isinstance(side, tuple) else side
        self.tile_latent_min_size = self.tile_sample_min_size // self.scale_factor

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Encode pixels in [-1, 1]: (batch, 3, height, width) -> (batch, 4, height/8, width/8)."""
        moments = self._encode_in_parts(lambda part: self.quant_conv(self.encoder(part)), x)
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments))

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generator | None = None
    ) -> DecoderOutput:
        """Decode unscaled latents to pixels in about [-1, 1]. Nothing is drawn; `generator` is unused."""
        pixels = self._decode_in_parts(lambda part: self.decoder(self.post_quant_conv(part)), z)
        return DecoderOutput(pixels)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generator | None = None,
    ) -> DecoderOutput:
        """Encode and decode pixels, as in training."""
        latents = self.encode(sample).latent_dist
        return self.decode(latents.sample(generator) if sample_posterior else latents.mode())

    @classmethod
    def legacy_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return attention_spelled_today(state)


def attention_spelled_today(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename attention's query, key, value and proj_attn; the oldest files hold them as convolutions."""
    renamed = {}
    for key, tensor in state.items():
        key = _OLD_ATTENTION.sub(lambda found: f"{found[1]}{_SPELLED_TODAY[found[2]]}.", key)
        is_convolution = _ATTENTION_WEIGHT.search(key) and tensor.ndim == 4
        renamed[key] = tensor.flatten(1) if is_convolution else tensor
    return renamed


def tiled(
    run: Callable[[Tensor], Tensor], x: Tensor, tile: int, units: tuple[int, int], overlap: float
) -> Tensor:
    """Run square tiles that overlap by a share of their side, and blend the results where they overlap.

    Sides are in latents. A latent is `units` values wide in `x`, and in the result.
    """
    unit, unit_out = units
    shared = min(max(round(tile * overlap), int(overlap > 0)), tile - 1)
    side, stride = tile * unit, (tile - shared) * unit
    seam, kept = shared * unit_out, (tile - shared) * unit_out  # of each result
    # No tile starts in an incomplete latent at the end.
    tops, lefts = (range(0, size // unit * unit, stride) for size in x.shape[-2:])
    strips: list[Tensor] = []
    above: Sequence[Tensor | None] = [None] * len(lefts)
    for top in tops:
        row: list[Tensor] = []
        for left, upper in zip(lefts, above, strict=True):
            result = run(x[:, :, top : top + side, left : left + side])
            if upper is not None:
                result = _blend(upper, result, seam, dim=2)
            if row:
                result = _blend(row[-1], result, seam, dim=3)
            row.append(result)
        strips.append(torch.cat([result[:, :, :kept, :kept] for result in row], dim=3))
        above = row
    return torch.cat(strips, dim=2)


def _blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """Return `after`, with its first rows or columns blended with the last ones of `before`."""
    extent = min(extent, before.shape[dim], after.shape[dim])
    shape = [-1 if axis == dim else 1 for axis in range(4)]
    weight = (torch.arange(extent, device=after.device) / max(extent, 1)).view(shape)
    old, new = before.narrow(dim, before.shape[dim] - extent, extent), after.narrow(dim, 0, extent)
    rest = after.narrow(dim, extent, after.shape[dim] - extent)
    return torch.cat([(old * (1 - weight) + new * weight).to(after.dtype), rest], dim=dim)
