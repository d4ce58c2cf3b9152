"""Pixels to latents and back with the Stable Diffusion families' autoencoder, and whose latents are whose."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retouch.errors import InputError


def encode_pixels(vae: Any, pixels: Tensor, generator: Any, *, upcast: bool = False) -> Tensor:
    """Scaled latents of pixels in [-1, 1], sampled; each row from its own generator if there are several.

    With `upcast` a float32 copy of the VAE does it, for those that overflow in half precision.
    """
    dtype = pixels.dtype
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
    latents = torch.cat(samples).to(dtype)
    mean, deviation = _statistics(vae, latents)
    return (latents - mean) * vae.config.scaling_factor / deviation


def decode_latents(vae: Any, latents: Tensor, *, upcast: bool = False) -> Tensor:
    """Pixels in [-1, 1] of scaled latents. Where half precision overflows, float32 is tried, and said so."""
    if not upcast:  # a VAE may be loaded in another precision than the rest
        pixels: Tensor = vae.decode(_unscaled(vae, latents.to(vae.dtype)), return_dict=False)[0]
        if not _overflowed(vae, pixels):
            return pixels
    return _float32_copy(vae).decode(_unscaled(vae, latents.float()), return_dict=False)[0]


def guarded(vae: Any, compute: Callable[[Any], Tensor]) -> Tensor:
    """What is computed with the VAE; where half precision overflows, once more with one in float32."""
    result = compute(vae)
    return compute(_float32_copy(vae)) if _overflowed(vae, result) else result


@dataclass(frozen=True)
class _Certain:
    """The latents of an autoencoder that answers with no distribution: nothing is drawn."""

    mean: Tensor

    def sample(self, generator: Any) -> Tensor:
        return self.mean


def _distribution(encoded: Any) -> Any:
    return encoded.latent_dist if hasattr(encoded, "latent_dist") else _Certain(encoded.latents)


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    mean, deviation = _statistics(vae, latents)
    return latents * deviation / vae.config.scaling_factor + mean


def _overflowed(vae: Any, *results: Tensor) -> bool:
    if vae.dtype == torch.float32 or all(bool(part.isfinite().all()) for part in results):
        return False
    warnings.warn(
        f"The VAE overflowed in {vae.dtype}; it works once more in float32. Load the pipeline in bfloat16 or "
        "float32 to spare the second pass.",
        stacklevel=3,
    )
    return True


def _float32_copy(vae: Any) -> Any:
    """A copy, so that the caller's module keeps its dtype and other threads are not disturbed."""
    return copy.deepcopy(vae).float()


def _statistics(vae: Any, latents: Tensor) -> tuple[Any, Any]:
    """Mean and deviation that the latents are normalised by, where the config has them."""
    mean, deviation = (getattr(vae.config, key, None) for key in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return 0.0, 1.0
    shape = (1, -1, 1, 1)
    return latents.new_tensor(mean).reshape(shape), latents.new_tensor(deviation).reshape(shape)


def identity(vae: Any) -> str:
    """What tells one latent space from another. A fine-tuned decoder keeps it."""
    config = vae.config
    return f"{type(vae).__name__} with scaling_factor {getattr(config, 'scaling_factor', None)}"


class Latents(Tensor):
    """Latents that remember the VAE they are of, so that another one refuses them by name."""

    vae: str

    @classmethod
    def of(cls, latents: Tensor, vae: Any) -> Latents:
        """Mark latents with their VAE."""
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
        return self.clone()  # torch's own refuses such classes

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # files hold plain tensors


def refuse_foreign(image: Any, vae: Any) -> None:
    """Refuse latents that are marked as another VAE's: this one would decode them into noise."""
    if isinstance(image, list | tuple):
        for part in image:
            refuse_foreign(part, vae)
    theirs = getattr(image, "vae", None) if isinstance(image, Latents) else None
    if theirs is not None and theirs != identity(vae):
        raise InputError(
            f"image holds latents of {theirs}, but this pipeline's VAE is {identity(vae)}, which would "
            "decode them into noise. Latents pass only between pipelines with the same VAE; make a picture "
            "first (output_type='pil') and give that."
        )
