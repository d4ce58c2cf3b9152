"""Loading a model by its name, as an inpainting pipeline on the best device."""

from __future__ import annotations

import os
from typing import Any

from retouch.devices import available_devices, fast_dtype, resolve_device, resolve_dtype
from retouch.editing.erasers import names_eraser
from retouch.editing.models import chosen, resolve
from retouch.errors import InputError, errors_about
from retouch.pipelines.auto import AutoPipelineForInpainting
from retouch.pipelines.pipeline import Pipeline


def load_pipeline(
    model: str | os.PathLike[str] | None = None, *, device: Any = None, dtype: Any = None, **options: Any
) -> Pipeline:
    """Load the inpainting pipeline of a checkpoint: a folder, hub repository, single file or short name.

    None takes the one that RETOUCH_MODEL names, or the built-in one.
    """
    place = resolve_device(device if device is not None else available_devices()[0])
    wanted = fast_dtype(place) if dtype is None else resolve_dtype(dtype, place)
    given = chosen(model)
    if names_eraser(given):
        raise InputError(
            f"model={str(given)!r} is a network for erasing, not a diffusion model with a pipeline. Use "
            f"retouch.erase(photo, mask, model={str(given)!r}), or name a diffusion model.",
            parameter="model",
        )
    name = resolve(given)
    with errors_about("model"):
        pipeline: Pipeline = AutoPipelineForInpainting.from_pretrained(name, dtype=wanted, **options)
    return pipeline.to(place)
