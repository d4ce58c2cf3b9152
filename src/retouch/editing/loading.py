"""From the name of a model to a pipeline that inpaints with it, on the best device there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retouch.devices import available_devices, fast_dtype, resolve_device, resolve_dtype
from retouch.editing.models import resolve
from retouch.pipelines.auto import AutoPipelineForInpainting
from retouch.pipelines.pipeline import Pipeline


def load_pipeline(
    model: str | Path | None, *, device: Any = None, dtype: Any = None, **options: Any
) -> Pipeline:
    """The inpainting pipeline of a checkpoint by folder, hub repository, single file or short name."""
    place = resolve_device(device if device is not None else available_devices()[0])
    wanted = fast_dtype(place) if dtype is None else resolve_dtype(dtype, place)
    pipeline: Pipeline = AutoPipelineForInpainting.from_pretrained(resolve(model), dtype=wanted, **options)
    return pipeline.to(place)
