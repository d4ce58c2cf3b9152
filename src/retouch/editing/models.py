"""Short names of well-known checkpoints, with their licence, size and purpose.

Names are only looked up here; checkpoints/locate.py finds and fetches files.
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
PATCHES = "patches"  # no model: erase and outpaint fill with patches of the photo


@dataclass(frozen=True)
class ModelEntry:
    """A published checkpoint."""

    repository: str  # or the name of a built-in one, or a file of a repository
    licence: str
    size_gb: float  # of its parts, in float32; a half-precision variant has half
    note: str  # the purpose, and the side of the pictures that it was trained on


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


# These ship in the package; checkpoints/shipped.py knows them by the same names.
BUILT_IN_NAMES: dict[str, ModelEntry] = {
    "builtin": ModelEntry("builtin", "Apache-2.0", 0.068, "for inpainting, 128 px; about 100 things by name"),
    "builtin-regular": ModelEntry("builtin-regular", "Apache-2.0", 0.068, "the same, regular"),
}
# Networks for erasing, which editing/erasers.py runs.
ERASER_NAMES: dict[str, ModelEntry] = {
    "migan": ModelEntry(
        "andraniksargsyan/migan/migan_pipeline_v2.onnx", "MIT", 0.028, "small and quick; textures, 512 px"
    ),
    "lama": ModelEntry(
        "Carve/LaMa-ONNX/lama_fp32.onnx", "Apache-2.0", 0.208, "large holes, repeated patterns, 512 px"
    ),
    "moebius": ModelEntry("simonw/Moebius-ONNX", "Apache-2.0", 1.27, "diffusion; minutes on a CPU, 512 px"),
}
MODELS: dict[str, ModelEntry] = {**BUILT_IN_NAMES, **SHORT_NAMES, **ERASER_NAMES}

_noticed = False


def named(name: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    """Return the name that was given, else the one in RETOUCH_MODEL; None for none and for "patches"."""
    found = name or os.environ.get("RETOUCH_MODEL") or None
    return None if found == PATCHES else found


def chosen(name: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """Return the name that was given, else the one in RETOUCH_MODEL, else the built-in model's with a notice.

    The notice is logged once in a process, and never for a name that was given, "builtin" included.
    """
    global _noticed
    if found := named(name):
        return found
    if name == PATCHES:
        raise InputError(
            "model='patches' fills with patches of the photo and paints nothing new, so it takes no prompt. "
            "Use it with erase and outpaint, or name a model that paints.",
            parameter="model",
        )
    if not _noticed:
        _noticed = True
        logger.warning(notice('model="sd15-inpaint"'))
    return DEFAULT


def notice(choice: str) -> str:
    """Return the notice that no model was named; `choice` is how the caller would name one."""
    return (
        "No model is named, so the built-in one paints: 128 pixels, about 100 things by name (`retouch "
        "models show builtin` lists them). For more, get a full-size one (`retouch models pull "
        f"sd15-inpaint`) and give {choice}."
    )


def resolve(name: str | os.PathLike[str]) -> str | Path:
    """Return what a name stands for: a folder, a file, a repository or a built-in model."""
    if not isinstance(name, str):
        return Path(name)
    if name in MODELS:
        return MODELS[name].repository
    # An id of the hub has one slash; a single word is a path or a typing error.
    if not any(mark in name for mark in ("/", "\\", ".", "~")) and not Path(name).exists():
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(
            f"model={name!r} is no short name, and no folder or file here has that name. {hint}Accepted are "
            f"a path, a hub id like 'org/name', or one of {', '.join(MODELS)}.",
            parameter="model",
        )
    return name


def short_name(repository: str) -> str | None:
    """Return the short name of a repository, or of a file in it, if it has one."""
    published = {**SHORT_NAMES, **ERASER_NAMES}
    return next(
        (name for name, entry in published.items() if repository_of(entry.repository) == repository), None
    )


def repository_of(name: str) -> str:
    """Return the repository of a file on the hub ('org/name/file'); any other name is returned unchanged."""
    return "/".join(name.split("/")[:2]) if name.endswith(".onnx") else name
