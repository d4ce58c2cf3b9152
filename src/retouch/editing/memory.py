"""Fallbacks when memory runs out during an edit: try again with less at once, and warn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from retouch.kernels import release_memory
from retouch.pipelines.pipeline import Pipeline

Result = TypeVar("Result")


def ran_out(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, on the processor or on an accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    phrases = ("out of memory", "can't allocate memory", "not enough memory")  # all of them torch's
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)


def with_tiled_vae(pipeline: Pipeline, side: int) -> Pipeline:
    """Return a pipeline of the same models whose VAE works in tiles of at most `side` pixels."""
    name, factor = pipeline.family.autoencoder, pipeline.layout.stride
    vae = copy.copy(pipeline.part(name))  # shares the weights
    step = 4 * factor  # tiles overlap by a quarter, which must be whole latents
    side = max(1, min(side, vae.tile_sample_min_size) // step) * step
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor
    return type(pipeline).from_pipe(pipeline, **{name: vae})


def with_fallbacks(attempts: Sequence[tuple[str, Callable[[], Result]]]) -> Result:
    """Return the result of the first attempt that fits into memory; each comes with its description."""
    for index, (_, attempt) in enumerate(attempts):
        try:
            return attempt()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) or index + 1 == len(attempts):
                raise
            kept: Any = str(error)
        release_memory()  # outside of `except`, whose error still holds the failed attempt's tensors
        warnings.warn(
            f"Memory ran out ({kept[:120]}). Trying again {attempts[index + 1][0]}; the result may differ a "
            f"little in detail. Close other programs, or give a smaller size, to avoid it.",
            stacklevel=2,
        )
    raise AssertionError("an attempt returns or raises")
