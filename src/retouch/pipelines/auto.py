"""Pipelines by task: the checkpoint says which family it is, the class says what to do with it."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from retouch.checkpoints.locate import Checkpoint
from retouch.errors import ConfigError
from retouch.pipelines.names import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from retouch.pipelines.pipeline import Pipeline

# One row for each family: text2image, image2image, inpaint.
_FAMILIES: tuple[tuple[type[Pipeline], type[Pipeline], type[Pipeline]], ...] = (
    (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
    (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
)


class _AutoPipeline:
    """Not to be made itself: `from_pretrained` and `from_pipe` return the fitting pipeline."""

    _column: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} only chooses a pipeline. Use "
            f"{type(self).__name__}.from_pretrained(name) or "
            f".from_pipe(pipeline)."
        )

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The pipeline for this task from a folder or a hub repository; see Pipeline.from_pretrained."""
        options = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        checkpoint = Checkpoint.open(name, **{key: kwargs[key] for key in options if key in kwargs})
        return cls._choose(checkpoint.index().get("_class_name"), str(name)).from_pretrained(name, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Pipeline, **kwargs: Any) -> Any:
        """The pipeline for this task with the parts of another one; nothing is copied."""
        return cls._choose(type(pipeline).__name__, repr(pipeline)).from_pipe(pipeline, **kwargs)

    @classmethod
    def _choose(cls, class_name: Any, source: str) -> type[Pipeline]:
        for row in _FAMILIES:
            if class_name in [front.__name__ for front in row]:
                return row[cls._column]
        known = ", ".join(row[0].__name__ for row in _FAMILIES)
        raise ConfigError(
            f"{source} is a {class_name}, for which there is no pipeline here. Known families: {known}. If "
            "it is one of these under another name, load it with that family's pipeline class."
        )


class AutoPipelineForText2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from text."""

    _column = 0


class AutoPipelineForImage2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from a picture."""

    _column = 1


class AutoPipelineForInpainting(_AutoPipeline):
    """Chooses the pipeline that repaints a part of a picture."""

    _column = 2
