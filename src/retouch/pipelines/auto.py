"""Pipelines by task: the checkpoint says which family it is, the class says what to do with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.single_file import SingleFile, names_single_file
from retouch.errors import ConfigError
from retouch.pipelines.controlnet_names import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from retouch.pipelines.kandinsky22_names import (
    KandinskyV22CombinedPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
)
from retouch.pipelines.names import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.single_file import open_single_file

_Row = tuple[type[Pipeline], type[Pipeline], type[Pipeline]]

# One row for each family: text2image, image2image, inpaint.
_FAMILIES: tuple[_Row, ...] = (
    (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
    (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
    (KandinskyV22Pipeline, KandinskyV22Img2ImgPipeline, KandinskyV22InpaintPipeline),
    (KandinskyV22CombinedPipeline, KandinskyV22Img2ImgCombinedPipeline, KandinskyV22InpaintCombinedPipeline),
)
# The same with a ControlNet, for the families that have one.
_CONTROLLED: dict[type[Pipeline], _Row] = {
    StableDiffusionPipeline: (
        StableDiffusionControlNetPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
    ),
    StableDiffusionXLPipeline: (
        StableDiffusionXLControlNetPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetInpaintPipeline,
    ),
}

_LOCATION = ("revision", "cache_dir", "token", "local_files_only", "force_download")


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
        if names_single_file(name):
            return cls.from_single_file(name, **kwargs)
        checkpoint = Checkpoint.open(name, **{key: kwargs[key] for key in _LOCATION if key in kwargs})
        kind = cls._choose(checkpoint.index().get("_class_name"), str(name), kwargs)
        return _with_prior(kind).from_pretrained(name, **_without_none(kwargs))

    @classmethod
    def download(cls, name: str | os.PathLike[str], **location: Any) -> list[Path]:
        """Fetch all that `from_pretrained` needs, and load none of it; the folders, or the file, it is in."""
        if names_single_file(name):
            return [SingleFile.open(name, **location).path]
        index = Checkpoint.open(name, **location).index()
        kind = cls._choose(index.get("_class_name"), str(name), {})
        return _with_prior(kind).download(name, **location)

    @classmethod
    def from_single_file(cls, name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The pipeline for this task from one original file; see Pipeline.from_single_file."""
        options = (*_LOCATION, "config", "use_safetensors")
        _, kind = open_single_file(name, **{key: kwargs[key] for key in options if key in kwargs})
        return cls._choose(kind.pipeline, str(name), kwargs).from_single_file(name, **_without_none(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Pipeline, **kwargs: Any) -> Any:
        """The pipeline for this task with the parts of another one; nothing is copied.

        `controlnet=...` gives the one with a ControlNet, which `controlnet=None` leaves behind.
        """
        kind = cls._choose(type(pipeline).__name__, repr(pipeline), kwargs)
        return kind.from_pipe(pipeline, **_without_none(kwargs))

    @classmethod
    def _choose(cls, class_name: Any, source: str, given: Mapping[str, Any]) -> type[Pipeline]:
        for plain in _FAMILIES:
            controlled = _CONTROLLED.get(plain[0], ())
            names = [front.__name__ for front in (*plain, *controlled)]
            if class_name not in names:
                continue
            has_net = class_name not in names[: len(plain)]
            if not (given["controlnet"] is not None if "controlnet" in given else has_net):
                return plain[cls._column]
            if controlled:
                return controlled[cls._column]
            raise ConfigError(
                f"controlnet was given with {source}, a {class_name}, which takes none. ControlNets go with "
                f"{', '.join(family.__name__ for family in _CONTROLLED)} and their kin. Leave it out."
            )
        known = ", ".join(plain[0].__name__ for plain in _FAMILIES)
        raise ConfigError(
            f"{source} is a {class_name}, for which there is no pipeline here. Known families: {known}. If "
            "it is one of these under another name, load it with that family's pipeline class."
        )


def _with_prior(kind: type[Pipeline]) -> type[Pipeline]:
    """A decoder of Kandinsky is loaded with the prior that belongs to it."""
    decoders, whole = _FAMILIES[-2:]
    return whole[decoders.index(kind)] if kind in decoders else kind


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords for a pipeline that need not know what a ControlNet is."""
    return {name: value for name, value in given.items() if name != "controlnet" or value is not None}


class AutoPipelineForText2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from text."""

    _column = 0


class AutoPipelineForImage2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from a picture."""

    _column = 1


class AutoPipelineForInpainting(_AutoPipeline):
    """Chooses the pipeline that repaints a part of a picture."""

    _column = 2
