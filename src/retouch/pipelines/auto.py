"""Pipelines by task: the checkpoint says which family it is of, the class says what to do with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.single_file import SingleFile, names_single_file
from retouch.errors import ConfigError
from retouch.families.registry import FamilyRow, require_row, row_named, rows
from retouch.pipelines.loading import open_single_file
from retouch.pipelines.pipeline import Pipeline

_LOCATION = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class _AutoPipeline:
    """Base of the Auto classes. They have no instances: they choose and return a pipeline."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise TypeError(
            f"{name} only chooses a pipeline. Use {name}.from_pretrained(name) or {name}.from_pipe(pipeline)."
        )

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Pipeline:
        """Load the pipeline for this task from a folder or a hub repository; see Pipeline.from_pretrained."""
        if names_single_file(name):
            return cls.from_single_file(name, **kwargs)
        checkpoint = Checkpoint.open(name, **{key: kwargs[key] for key in _LOCATION if key in kwargs})
        kind = cls._choose(checkpoint.index().get("_class_name"), str(name), kwargs, for_loading=True)
        return kind.from_pretrained(name, **_without_none(kwargs))

    @classmethod
    def download(cls, name: str | os.PathLike[str], **location: Any) -> list[Path]:
        """Fetch the files that `from_pretrained` needs and load none of them; return their folders, or the
        file.
        """
        if names_single_file(name):
            return [SingleFile.open(name, **location).path]
        index = Checkpoint.open(name, **location).index()
        return cls._choose(index.get("_class_name"), str(name), {}, for_loading=True).download(
            name, **location
        )

    @classmethod
    def from_single_file(cls, name: str | os.PathLike[str], **kwargs: Any) -> Pipeline:
        """Load the pipeline for this task from one original file; see Pipeline.from_single_file."""
        options = (*_LOCATION, "config", "use_safetensors")
        _, kind = open_single_file(name, **{key: kwargs[key] for key in options if key in kwargs})
        chosen = cls._with_row(row_named(kind.family), kind.title, str(name), kwargs, has_net=False)
        return chosen.from_single_file(name, **_without_none(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Pipeline, **kwargs: Any) -> Pipeline:
        """Return the pipeline for this task with the parts of another one; nothing is copied.

        `controlnet=...` gives the one with a ControlNet, `controlnet=None` the one without.
        """
        kind = cls._choose(type(pipeline).__name__, repr(pipeline), kwargs)
        return kind.from_pipe(pipeline, **_without_none(kwargs))

    @classmethod
    def _choose(
        cls, class_name: Any, source: str, given: Mapping[str, Any], *, for_loading: bool = False
    ) -> type[Pipeline]:
        row = require_row(class_name, source)
        if for_loading and row.whole is not None:
            row = row_named(row.whole)
        return cls._with_row(
            row, str(class_name), source, given, has_net=class_name in row.controlled.values()
        )

    @classmethod
    def _with_row(
        cls, row: FamilyRow, class_name: str, source: str, given: Mapping[str, Any], *, has_net: bool
    ) -> type[Pipeline]:
        """Return the family's pipeline class for this task, with a ControlNet if the caller or checkpoint has
        one.
        """
        controlled = given["controlnet"] is not None if "controlnet" in given else has_net
        if controlled and not row.controlled:
            able = ", ".join(other.pipelines["text2image"] for other in rows() if other.controlled)
            raise ConfigError(
                f"controlnet was given with {source}, a {class_name}, which takes none. ControlNets go with "
                f"{able} and the other classes of their families. Leave it out.",
                parameter="controlnet",
            )
        chosen: type[Pipeline] = row.pipeline(cls.task, controlled=controlled)
        return chosen


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords for a pipeline class that may not know `controlnet`."""
    return {name: value for name, value in given.items() if name != "controlnet" or value is not None}


class AutoPipelineForText2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from text."""

    task = "text2image"


class AutoPipelineForImage2Image(_AutoPipeline):
    """Chooses the pipeline that makes pictures from a picture."""

    task = "image2image"


class AutoPipelineForInpainting(_AutoPipeline):
    """Chooses the pipeline that repaints a part of a picture."""

    task = "inpaint"
