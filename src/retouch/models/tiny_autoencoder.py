"""The tiny autoencoder (TAESD): a few narrow convolutions that were trained to imitate the large one.

For previews, or in place of a pipeline's VAE. Encoding returns latents, not a distribution, and they need no
scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import ConfigError
from retouch.models.autoencoder import DecoderOutput, InParts


@dataclass(frozen=True)
class AutoencoderTinyConfig(Config):
    """The settings, with the names and defaults of published config.json files.

    Tuples list one value for each level, in the order in which pixels or latents pass the levels.
    """

    neutral: ClassVar = {"act_fn": "relu", "upsample_fn": "nearest"}

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    # For programs that store latents as bytes.
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    # For the callers that scale latents and choose a dtype.
    scaling_factor: float = 1.0
    force_upcast: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the config") -> Self:
        # Files that the reference wrote repeat the decoder's widths under this name.
        return super().from_dict({k: v for k, v in values.items() if k != "block_out_channels"}, source)

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """The channels of each level; their number tells how much smaller latents are than pixels."""
        return self.decoder_block_out_channels

    def __post_init__(self) -> None:
        for part in ("encoder", "decoder"):
            blocks, widths = f"num_{part}_blocks", f"{part}_block_out_channels"
            numbers, channels = getattr(self, blocks), getattr(self, widths)
            if len(numbers) != len(channels) or len(set(channels)) != 1:
                raise ConfigError(
                    f"{blocks} = {numbers} and {widths} = {channels} do not make a tiny autoencoder. It "
                    "needs as many numbers of blocks as widths, and the same width at all levels. Use the "
                    "config.json that belongs to the weights.",
                    parameter=widths,
                )


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(channels, channels),
            nn.ReLU(inplace=True),
            _convolution(channels, channels),
            nn.ReLU(inplace=True),
            _convolution(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x, inplace=True)


class EncoderTiny(nn.Module):
    """Pixels to latents."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width = config.encoder_block_out_channels[0]
        first, *others = config.num_encoder_blocks
        layers = [_convolution(config.in_channels, width), *_blocks(width, first)]
        for count in others:
            layers += [_convolution(width, width, stride=2, bias=False), *_blocks(width, count)]
        self.layers = nn.Sequential(*layers, _convolution(width, config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)  # it was trained on pixels from 0 to 1


class DecoderTiny(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        width, factor = config.decoder_block_out_channels[0], config.upsampling_scaling_factor
        *others, last = config.num_decoder_blocks
        layers: list[nn.Module] = [_convolution(config.latent_channels, width), nn.ReLU(inplace=True)]
        for count in others:
            layers += _blocks(width, count)
            layers += [nn.Upsample(scale_factor=factor), _convolution(width, width, bias=False)]
        self.layers = nn.Sequential(*layers, *_blocks(width, last), _convolution(width, config.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        # Latents beyond 3 are rare in pictures, and common while there is much noise.
        return self.layers(3 * (x / 3).tanh()) * 2 - 1


def _convolution(incoming: int, outgoing: int, stride: int = 1, bias: bool = True) -> nn.Module:
    return nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=bias)


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [AutoencoderTinyBlock(width) for _ in range(count)]


class AutoencoderTinyOutput(NamedTuple):
    """The result. It is also a tuple of one, as callers with `return_dict=False` expect."""

    latents: Tensor


class AutoencoderTiny(InParts, Pretrained, nn.Module):
    """Encoder and decoder."""

    config_class = AutoencoderTinyConfig
    config: AutoencoderTinyConfig

    tile_sample_min_size = 512
    tile_overlap_factor = 0.125

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = AutoencoderTinyConfig.from_dict(settings)
        self.encoder, self.decoder = EncoderTiny(config), DecoderTiny(config)
        self.tile_latent_min_size = self.tile_sample_min_size // self.scale_factor

    @property
    def scale_factor(self) -> int:
        """The number of pixels for each latent along a side."""
        return self.config.upsampling_scaling_factor ** (len(self.config.decoder_block_out_channels) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput:
        """Encode pixels in [-1, 1]: (batch, 3, height, width) -> (batch, 4, height/8, width/8)."""
        latents = self._encode_in_parts(self.encoder, x)
        return AutoencoderTinyOutput(latents)

    def decode(self, x: Tensor, generator: Any = None, return_dict: bool = True) -> DecoderOutput:
        """Decode latents to pixels in about [-1, 1]. Nothing is drawn; `generator` is unused."""
        pixels = self._decode_in_parts(self.decoder, x)
        return DecoderOutput(pixels)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Scale latents to values from 0 to 1."""
        return (x / (2 * self.config.latent_magnitude) + self.config.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """Scale values from 0 to 1 back to latents."""
        return (x - self.config.latent_shift) * (2 * self.config.latent_magnitude)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Encode and decode pixels, with the latents rounded to 8 bits in between."""
        stored = (self.scale_latents(self.encode(sample).latents) * 255).round()
        return self.decode(self.unscale_latents(stored / 255))
