"""One row for each family: what its checkpoints are called, and which pipeline classes do its tasks.

The Auto classes, the recognition of folders and files, and the names that `retouch` exports come from these
rows. They are plain data, so that reading them imports no model. A package outside can add a row through an
entry point in the group "retouch.families" that names a `FamilyRow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from retouch.errors import CheckpointError, ConfigError

ENTRY_POINTS = "retouch.families"
TASKS = ("text2image", "image2image", "inpaint")


@dataclass(frozen=True)
class FamilyRow:
    """The facts of a family. Pipeline classes are named by task, as checkpoints name them too."""

    name: str  # the family's own, `Family.name`
    title: str
    home: str  # the module that has the pipeline classes
    pipelines: Mapping[str, str]  # task -> class name
    controlled: Mapping[str, str] = field(default_factory=dict)  # the same with a ControlNet
    others: Sequence[str] = ()  # further pipeline classes that are exported
    models: Mapping[str, str] = field(default_factory=dict)  # class of a part -> the module that has it
    # The width of the text states that the denoiser reads -> what such checkpoints are called.
    text_widths: Mapping[int, str] = field(default_factory=dict)
    # The family to load a checkpoint of this one with, if it is only a part of a whole.
    whole: str | None = None

    @property
    def class_names(self) -> list[str]:
        """All classes of the family."""
        return [*self.pipelines.values(), *self.controlled.values(), *self.others]

    def pipeline(self, task: str, *, controlled: bool = False) -> Any:
        """Return the pipeline class of a task."""
        name = (self.controlled if controlled else self.pipelines)[task]
        return getattr(import_module(self.home), name)


def _names(pattern: str) -> dict[str, str]:
    """Return the class names of the tasks; the reference names them after one pattern."""
    return {
        "text2image": pattern.format(""),
        "image2image": pattern.format("Img2Img"),
        "inpaint": pattern.format("Inpaint"),
    }


_COMPAT = "retouch.pipelines.compat"

BUILT_IN_ROWS: tuple[FamilyRow, ...] = (
    FamilyRow(
        "stable_diffusion",
        "Stable Diffusion",
        _COMPAT,
        _names("StableDiffusion{}Pipeline"),
        _names("StableDiffusionControlNet{}Pipeline"),
        others=["StableDiffusionSimpleInpaintingPipeline"],
        models={
            "UNet2DConditionModel": "retouch.models.unet",
            "AutoencoderKL": "retouch.models.autoencoder",
            "AutoencoderTiny": "retouch.models.tiny_autoencoder",
            "ControlNetModel": "retouch.models.controlnet",
            "MultiControlNetModel": "retouch.models.controlnet",
        },
        text_widths={768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"},
    ),
    FamilyRow(
        "stable_diffusion_xl",
        "Stable Diffusion XL",
        _COMPAT,
        _names("StableDiffusionXL{}Pipeline"),
        _names("StableDiffusionXLControlNet{}Pipeline"),
        text_widths={2048: "Stable Diffusion XL", 1280: "Stable Diffusion XL refiner"},
    ),
    FamilyRow(
        "kandinsky22_decoder",
        "Kandinsky 2.2",
        _COMPAT,
        _names("KandinskyV22{}Pipeline"),
        models={"VQModel": "retouch.models.movq"},
        whole="kandinsky22",
    ),
    FamilyRow(
        "kandinsky22",
        "Kandinsky 2.2",
        _COMPAT,
        _names("KandinskyV22{}CombinedPipeline"),
        others=["KandinskyV22PriorPipeline"],
        models={"PriorTransformer": "retouch.models.prior_transformer"},
    ),
)


def rows() -> tuple[FamilyRow, ...]:
    """Return the rows of all families: those of this package, then those of entry points."""
    return BUILT_IN_ROWS + _added_rows()


@cache
def _added_rows() -> tuple[FamilyRow, ...]:
    added: list[FamilyRow] = []
    taken = {row.name for row in BUILT_IN_ROWS}
    for entry in entry_points(group=ENTRY_POINTS):
        row = entry.load()
        if not isinstance(row, FamilyRow) or row.name in taken:
            raise CheckpointError(
                f"The entry point {entry.name!r} of the group {ENTRY_POINTS} ({entry.value}) is not a new "
                f"FamilyRow. Names that are taken: {', '.join(sorted(taken))}. Correct or uninstall the "
                f"package that brings it."
            )
        taken.add(row.name)
        added.append(row)
    return tuple(added)


def forget_added_rows() -> None:
    """Read the entry points again at the next use."""
    _added_rows.cache_clear()


def row_named(name: str) -> FamilyRow:
    """Return the row of a family by its name."""
    return next(row for row in rows() if row.name == name)


def row_of_class(class_name: Any) -> FamilyRow | None:
    """Return the row that has a pipeline class, or None."""
    # Entry points are read only for names that are not known here.
    for row in BUILT_IN_ROWS:
        if class_name in row.class_names:
            return row
    return next((row for row in _added_rows() if class_name in row.class_names), None)


def require_row(class_name: Any, source: str) -> FamilyRow:
    """Return the row that has a pipeline class, and refuse an unknown class."""
    row = row_of_class(class_name)
    if row is None:
        known = ", ".join(row.pipelines["text2image"] for row in rows())
        raise ConfigError(
            f"{source} is a {class_name}, for which there is no pipeline here. Known families: {known}. If "
            "it is one of these under another name, load it with that family's pipeline class.",
            parameter="name",
        )
    return row


def family_and_task(class_name: Any) -> tuple[str, str]:
    """Return the names of the family and of the task of a pipeline class."""
    row = require_row(class_name, "config")
    named = [*row.pipelines.items(), *row.controlled.items()]
    return row.name, next((task for task, name in named if name == class_name), "text2image")


def home_of_class(class_name: str) -> str | None:
    """Return the module that has a pipeline class, or None."""
    row = row_of_class(class_name)
    return None if row is None else row.home


def model_homes() -> dict[str, str]:
    """Return the module of each class that a part of a checkpoint can have."""
    return {name: home for row in rows() for name, home in row.models.items()}


def title_of_width(width: int | None) -> str | None:
    """Return what checkpoints are called whose denoiser reads text states of a width."""
    return next((name for row in rows() for known, name in row.text_widths.items() if known == width), None)
