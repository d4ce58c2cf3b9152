"""Names of well-known checkpoints, with what to know before using one: the licence, the size, what it is for.

A name is only looked up here; finding and fetching files is checkpoints/locate.py's.
"""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from retouch.errors import InputError

logger = logging.getLogger("retouch")

DEFAULT = "builtin"


@dataclass(frozen=True)
class ModelEntry:
    """A published checkpoint."""

    repository: str  # of the built-in ones their name
    licence: str
    size_gb: float  # of its parts, in float32; a half-precision variant has half
    note: str  # what for, and the side of the pictures that it was trained on


SHORT_NAMES: dict[str, ModelEntry] = {
    "sd15-inpaint": ModelEntry(
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "CreativeML Open RAIL-M",
        4.3,
        "for inpainting, 512 px; start here",
    ),
    "sd15": ModelEntry(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML Open RAIL-M",
        4.3,
        "regular, 512 px",
    ),
    "sd2-inpaint": ModelEntry(
        "sd2-community/stable-diffusion-2-inpainting",  # withdrawn by its makers; this mirror took over
        "CreativeML Open RAIL++-M",
        5.2,
        "for inpainting, 512 px",
    ),
    "sdxl-inpaint": ModelEntry(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "CreativeML Open RAIL++-M",
        13.9,
        "for inpainting, 1024 px",
    ),
    "sdxl": ModelEntry(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "CreativeML Open RAIL++-M",
        13.9,
        "regular, 1024 px",
    ),
    "sdxl-refiner": ModelEntry(
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "CreativeML Open RAIL++-M",
        12.2,
        "SDXL's second stage, at strength 0.3",
    ),
    "kandinsky22": ModelEntry(
        "kandinsky-community/kandinsky-2-2-decoder-inpaint",
        "Apache-2.0",
        5.3,
        "for inpainting, 768 px; and its prior",
    ),
}


# They ship in the package: no more than a name for checkpoints/shipped.py.
BUILT_IN_NAMES: dict[str, ModelEntry] = {
    "builtin": ModelEntry("builtin", "Apache-2.0", 0.068, "for inpainting, 128 px; about 100 things by name"),
    "builtin-regular": ModelEntry("builtin-regular", "Apache-2.0", 0.068, "the same, regular"),
}
MODELS: dict[str, ModelEntry] = {**BUILT_IN_NAMES, **SHORT_NAMES}

NOTICE = (
    "No model is named, so the built-in one paints: 128 pixels, about 100 things by name (`retouch models "
    "show builtin` lists them). For more, get a full-size one (`retouch models pull sd15-inpaint`) and give "
    'model="sd15-inpaint".'
)
_noticed = False


def chosen(name: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """A model's name as it was given, else as RETOUCH_MODEL has it, else the built-in one's, with a notice.

    The notice is logged once in a process; a name that was given, "builtin" too, brings none.
    """
    global _noticed
    name = name or os.environ.get("RETOUCH_MODEL")
    if name:
        return name
    if not _noticed:
        _noticed = True
        logger.warning(NOTICE)
    return DEFAULT


def resolve(name: str | os.PathLike[str]) -> str | Path:
    """What a model's name stands for: a folder, file, repository or what ships; short names come first."""
    if not isinstance(name, str):
        return Path(name)
    if name in MODELS:
        return MODELS[name].repository
    # An id of the hub has one slash; a word alone is a path or a slip of the pen.
    if not any(mark in name for mark in ("/", "\\", ".", "~")) and not Path(name).exists():
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"model={name!r} is no short name, and no folder or file here is called so. {hint}Accepted are "
            f"a path, a hub id like 'org/name', or one of {', '.join(MODELS)}."
        )
    return name


def short_name(repository: str) -> str | None:
    """The short name of a repository, if it has one."""
    return next((name for name, entry in SHORT_NAMES.items() if entry.repository == repository), None)
