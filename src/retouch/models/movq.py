"""Kandinsky's autoencoder, MOVQ (arXiv:2209.09002): a decoder whose norms depend on the latents.

Kandinsky 2.2 uses the latents unscaled and before the codebook; `quantize` replaces them by the nearest
entries of the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import ConfigError
from retouch.models.attention import Attention, to_map, to_tokens
from retouch.models.autoencoder import (
    CoderConfig,
    DecoderOutput,
    Encoder,
    InParts,
    attention_spelled_today,
)
from retouch.models.layers import Upsample2D


@dataclass(frozen=True)
class VQModelConfig(CoderConfig):
    """The settings, with the names and defaults of published config.json files."""

    supported_blocks: ClassVar = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
    }

    latent_channels: int = 3
    sample_size: int = 32  # nothing depends on it
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    norm_type: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_type != "spatial":
            raise ConfigError(
                f"norm_type = {self.norm_type!r} is not supported by VQModel. Supported: 'spatial', which "
                "makes a VQModel a MOVQ. Use a checkpoint of Kandinsky.",
                parameter="norm_type",
            )


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift come from the latents below each pixel."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=1e-6)  # 32 groups, whatever the config says
        self.conv_y = nn.Conv2d(latent_channels, channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        below = F.interpolate(latents, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(below) + self.conv_b(below)


class SpatialNormResnetBlock2D(nn.Module):
    """A residual block with norms that depend on the latents."""

    def __init__(self, in_channels: int, out_channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, latent_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SpatialNorm(out_channels, latent_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, latents)))
        h = self.conv2(F.silu(self.norm2(h, latents)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class SpatialNormAttention(Attention):
    """One head of attention among all pixels, with a norm that depends on the latents."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__(channels, heads=1, dim_head=channels, bias=True)
        self.spatial_norm = SpatialNorm(channels, latent_channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:  # type: ignore[override]
        return x + to_map(super().forward(to_tokens(self.spatial_norm(x, latents))), x.shape[2:])


class DecoderBlock(nn.Module):
    """Residual blocks, with or without attention after each; then twice the resolution."""

    def __init__(
        self, in_channels: int, channels: int, config: VQModelConfig, *, attends: bool, is_last: bool
    ) -> None:
        super().__init__()
        latent, incoming = config.latent_channels, (in_channels, *[channels] * config.layers_per_block)
        self.resnets = nn.ModuleList(SpatialNormResnetBlock2D(each, channels, latent) for each in incoming)
        if attends:
            self.attentions = nn.ModuleList(SpatialNormAttention(channels, latent) for _ in incoming)
        self.upsamplers = nn.ModuleList([] if is_last else [Upsample2D(channels)])

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        attentions: Sequence[Any] = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            x = resnet(x, latents)
            x = x if attention is None else attention(x, latents)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class MidBlock(nn.Module):
    """Attention among all pixels, between two residual blocks."""

    def __init__(self, channels: int, config: VQModelConfig) -> None:
        super().__init__()
        latent, add = config.latent_channels, config.mid_block_add_attention
        self.resnets = nn.ModuleList(SpatialNormResnetBlock2D(channels, channels, latent) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialNormAttention(channels, latent)] if add else [])

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        first, last = self.resnets
        x = first(x, latents)
        for attention in self.attentions:
            x = attention(x, latents)
        return last(x, latents)


class Decoder(nn.Module):
    """Latents to pixels; every norm depends on the input latents."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        channels, last = config.block_out_channels[::-1], len(config.block_out_channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], config)
        self.up_blocks = nn.ModuleList(
            DecoderBlock(
                channels[max(index - 1, 0)],
                width,
                config,
                attends=config.up_block_types[index] == "AttnUpDecoderBlock2D",
                is_last=index == last,
            )
            for index, width in enumerate(channels)
        )
        self.conv_norm_out = SpatialNorm(channels[-1], config.latent_channels)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x), latents)
        for block in self.up_blocks:
            x = block(x, latents)
        return self.conv_out(F.silu(self.conv_norm_out(x, latents)))


class VectorQuantizer(nn.Module):
    """The codebook: each latent becomes its nearest entry."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)

    def forward(self, latents: Tensor) -> Tensor:
        tokens = to_tokens(latents)
        nearest = torch.cdist(tokens.flatten(0, 1), self.embedding.weight).argmin(dim=1)
        return to_map(self.embedding(nearest).view(tokens.shape), latents.shape[2:])


class VQEncoderOutput(NamedTuple):
    """The result. It is also a tuple of one, as callers with `return_dict=False` expect."""

    latents: Tensor


class VQModel(InParts, Pretrained, nn.Module):
    """Encoder, codebook and decoder."""

    config_class = VQModelConfig
    config: VQModelConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = VQModelConfig.from_dict(settings)
        latent = config.latent_channels
        width = config.vq_embed_dim or latent
        self.encoder = Encoder(config, latent)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.quantize = VectorQuantizer(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        self.decoder = Decoder(config)
        # Published configs say 32 pixels, too few for tiles whose seams do not show.
        self.tile_sample_min_size = 512
        self.tile_latent_min_size = 512 // self.scale_factor

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput:
        """Encode pixels in [-1, 1]: (batch, 3, height, width) -> (batch, 4, height/8, width/8)."""
        latents = self._encode_in_parts(lambda part: self.quant_conv(self.encoder(part)), x)
        return VQEncoderOutput(latents)

    def decode(self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True) -> DecoderOutput:
        """Decode latents, which go through the codebook first unless `force_not_quantize`."""
        pixels = self._decode_in_parts(
            lambda part: self.decoder(self.post_quant_conv(part), part),
            h if force_not_quantize else self.quantize(h),
        )
        return DecoderOutput(pixels)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Encode and decode pixels, as in training."""
        return self.decode(self.encode(sample).latents)

    @classmethod
    def legacy_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return attention_spelled_today(state)
