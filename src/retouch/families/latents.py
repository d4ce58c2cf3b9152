"""How the latents of a family lie and are scaled. Masks, crops, tiles, previews and the verbs ask it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LatentLayout:
    """The shape of a family's latents and the way from an autoencoder's raw latents to the denoiser's."""

    channels: int
    stride: int = 8  # pixels for each latent along a side
    packing: int = 1  # latents for each of the denoiser's tokens along a side
    scale: float = 1.0
    shift: float = 0.0
    mean: Sequence[float] | None = None  # for each channel, with `deviation`, in place of `shift`
    deviation: Sequence[float] | None = None

    @classmethod
    def of_autoencoder(cls, vae: Any, *, packing: int = 1) -> LatentLayout:
        """Return the layout that an autoencoder's config describes."""
        config = vae.config
        mean, deviation = (getattr(config, key, None) for key in ("latents_mean", "latents_std"))
        return cls(
            channels=int(config.latent_channels),
            stride=int(2 ** (len(config.block_out_channels) - 1)),
            packing=packing,
            scale=float(getattr(config, "scaling_factor", None) or 1.0),
            shift=float(getattr(config, "shift_factor", None) or 0.0),
            mean=None if mean is None else tuple(mean),
            deviation=None if deviation is None else tuple(deviation),
        )

    @property
    def multiple(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return self.stride * self.packing

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the latents' height and width for those of a picture."""
        return height // self.stride, width // self.stride

    def shape(self, rows: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape of the latents of `rows` pictures of a size in pixels."""
        return (rows, self.channels, *self.size(height, width))

    def filled_up(self, height: int, width: int) -> tuple[int, int]:
        """Return a size in pixels, each side raised to the next multiple."""
        multiple = self.multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def scaled(self, raw: Tensor) -> Tensor:
        """Return an autoencoder's latents as the denoiser expects them."""
        offset, spread = self._statistics(raw)
        return (raw - offset) * self.scale / spread

    def unscaled(self, latents: Tensor) -> Tensor:
        """Return the denoiser's latents as the autoencoder decodes them."""
        offset, spread = self._statistics(latents)
        return latents * spread / self.scale + offset

    def _statistics(self, like: Tensor) -> tuple[Any, Any]:
        if self.mean is None or self.deviation is None:
            return self.shift, 1.0
        shape = (1, -1, 1, 1)
        return like.new_tensor(self.mean).reshape(shape), like.new_tensor(self.deviation).reshape(shape)

    def packed(self, latents: Tensor) -> Tensor:
        """Return (batch, channels, height, width) as tokens (batch, tokens, channels * packing squared)."""
        side = self.packing
        squares = latents.unflatten(3, (-1, side)).unflatten(
            2, (-1, side)
        )  # (b, c, rows, side, columns, side)
        return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpacked(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return tokens as (batch, channels, height, width); `size` is that of the latents."""
        side, (height, width) = self.packing, size
        squares = tokens.unflatten(1, (height // side, width // side)).unflatten(3, (-1, side, side))
        return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
