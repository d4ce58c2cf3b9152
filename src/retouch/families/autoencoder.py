"""Pixels to latents and back through an autoencoder, and a mark that tells whose latents a tensor holds.

In half precision an autoencoder may overflow; then a copy in float32 repeats the work, and a warning says so.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.latents import LatentLayout


def encode_pixels(
    vae: Any, layout: LatentLayout, pixels: Tensor, generator: Any, *, upcast: bool = False
) -> Tensor:
    """Return scaled, sampled latents of pixels in [-1, 1]; a list of generators has one for each row.

    With `upcast` a float32 copy of the autoencoder does the work.
    """
    several = isinstance(generator, Sequence)
    sources = list(generator) if several else [generator]
    rows = pixels.split(1)[: len(sources)] if several else [pixels]
    if upcast and vae.dtype != torch.float32:
        vae = _float32_copy(vae)
    found = [_distribution(vae.encode(row.to(vae.dtype))) for row in rows]
    if _overflowed(vae, *(part.mean for part in found)):  # before a random number is drawn
        vae = _float32_copy(vae)
        found = [_distribution(vae.encode(row.float())) for row in rows]
    samples = [part.sample(source) for part, source in zip(found, sources, strict=False)]
    return layout.scaled(torch.cat(samples).to(pixels.dtype))


def decode_latents(vae: Any, layout: LatentLayout, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Return pixels in [-1, 1] of scaled latents. `upcast` decodes with a float32 copy from the start."""
    if not upcast:  # an autoencoder may be loaded in another precision than the rest
        pixels: Tensor = vae.decode(layout.unscaled(latents.to(vae.dtype)), return_dict=False)[0]
        if not _overflowed(vae, pixels):
            return pixels
    return _float32_copy(vae).decode(layout.unscaled(latents.float()), return_dict=False)[0]


def with_float32_fallback(vae: Any, compute: Callable[[Any], Tensor]) -> Tensor:
    """Return what `compute` makes with the autoencoder, or with a float32 copy where that overflows."""
    result = compute(vae)
    return compute(_float32_copy(vae)) if _overflowed(vae, result) else result


@dataclass(frozen=True)
class _Certain:
    """The answer of an autoencoder without a distribution: nothing is drawn."""

    mean: Tensor

    def sample(self, generator: Any) -> Tensor:
        return self.mean


def _distribution(encoded: Any) -> Any:
    return encoded.latent_dist if hasattr(encoded, "latent_dist") else _Certain(encoded.latents)


def _overflowed(vae: Any, *results: Tensor) -> bool:
    if vae.dtype == torch.float32 or all(bool(part.isfinite().all()) for part in results):
        return False
    warnings.warn(
        f"The VAE overflowed in {vae.dtype}, so a float32 copy repeats its work. Load the pipeline in "
        "bfloat16 or float32 to save that time.",
        stacklevel=3,
    )
    return True


def _float32_copy(vae: Any) -> Any:
    """Return a float32 copy: the caller's module keeps its dtype, and other threads are not disturbed."""
    return copy.deepcopy(vae).float()


def identity(vae: Any) -> str:
    """Return a description of a latent space that tells it from others. Fine-tuned decoders keep it."""
    config = vae.config
    return f"{type(vae).__name__} with scaling_factor {getattr(config, 'scaling_factor', None)}"


class Latents(Tensor):
    """Latents that remember the autoencoder they belong to, so that another one can refuse them."""

    vae: str

    @classmethod
    def of(cls, latents: Tensor, vae: Any) -> Latents:
        """Mark latents with their autoencoder."""
        marked = latents.as_subclass(cls)
        marked.vae = identity(vae)
        return marked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        several = (value for value in args if isinstance(value, tuple | list))  # torch.cat takes a list
        sources = [*args, *(part for value in several for part in value)]
        mark = next((value.vae for value in sources if hasattr(value, "vae")), None)
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, Latents) and mark is not None:
                part.vae = mark
        return result

    def __deepcopy__(self, memo: Any) -> Any:
        return self.clone()  # torch's own deepcopy refuses such classes

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # files hold plain tensors


def refuse_foreign(image: Any, vae: Any) -> None:
    """Refuse latents that are marked as another autoencoder's: this one would decode them into noise."""
    if isinstance(image, list | tuple):
        for part in image:
            refuse_foreign(part, vae)
    theirs = getattr(image, "vae", None) if isinstance(image, Latents) else None
    if theirs is not None and theirs != identity(vae):
        raise InputError(
            f"image holds latents of {theirs}, but this pipeline's VAE is {identity(vae)}, which would "
            "decode them into noise. Latents pass only between pipelines with the same VAE; make a picture "
            "first (output_type='pil') and give that.",
            parameter="image",
        )
