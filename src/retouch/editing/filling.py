"""Erasing and extending without a model: holes are filled with patches of the photo itself.

Nothing here needs torch, so an edit starts at once.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from retouch.editing.options import Options, Update, margins
from retouch.editing.result import Edit, mean_of_known
from retouch.errors import Cancelled, InputError
from retouch.images.crops import Crop
from retouch.images.detail import detail_score
from retouch.images.fill import fill_hole
from retouch.images.join import join
from retouch.images.mask import Mask
from retouch.images.mask_reading import read_photo_mask
from retouch.images.patch_fill import Stopped, patch_fill, windows
from retouch.images.photo import Patch, Photo
from retouch.images.seam import seam_score

_APPLICABLE = (
    *(
        "mask_mode",
        "invert",
        "grow",
        "fit_mask",
        "fill",
        "source",
        "feather",
        "seed",
        "variations",
        "progress",
    ),
)
_GROW = 0.01  # of the longest hole's longer side, between these:
_LEAST_GROW, _MOST_GROW = 1.0, 8.0  # pixels


def erase(photo: Any, mask: Any, **options: Any) -> Edit:
    """Remove what is under the mask, and a pixel or two more, by continuing its surroundings."""
    opened, wanted = Photo.open(photo), _options("erase", options)
    reading = {"mask_mode": wanted.mask_mode, "invert": wanted.invert, "fit_mask": wanted.fit_mask}
    read = read_photo_mask(mask, opened.size, grow=wanted.grow, **reading)
    if "grow" not in options:
        wanted = replace(wanted, grow=_usual_grow(read))
        read = read_photo_mask(mask, opened.size, grow=wanted.grow, **reading)
    return _edit("erase", opened, read, wanted, {})


def outpaint(
    photo: Any,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    aspect: str | float | None = None,
    **options: Any,
) -> Edit:
    """Continue the photo beyond its edges, by pixels or to an aspect such as "16:9"."""
    opened, wanted = Photo.open(photo), _options("outpaint", options)
    sides = margins(opened.size, (left, top, right, bottom), aspect)
    canvas, new = opened.extended(*sides)
    mask = Mask(new.astype(np.float32)).grown(wanted.grow)
    return _edit("outpaint", canvas, mask, wanted, {"margins": list(sides)})


def _options(verb: str, given: dict[str, Any]) -> Options:
    """Return checked options; those that only a model has are refused."""
    for name in given:
        if name not in _APPLICABLE and hasattr(Options, name):
            raise InputError(
                f"{name}={given[name]!r} is an option of painting by a model, and {verb} without a model "
                f'copies patches of the photo. Name a model, such as model="sd15-inpaint", or leave {name} '
                "out.",
                parameter=name,
            )
    options = Options.of(**{"fill": "patches", "feather": 0, "seed": 0, **given})
    if options.fill == "original":
        raise InputError(
            f"fill='original' leaves what is in the hole. {verb} without a model takes the other fills; "
            "'patches' is the best one.",
            parameter="fill",
        )
    return options


def _usual_grow(mask: Mask) -> float:
    """Return by how much to widen a mask: the edge of a thing still has colours of the thing."""
    longest = max(max(right - left, bottom - top) for left, top, right, bottom in mask.holes())
    grow = round(min(max(_GROW * longest, _LEAST_GROW), _MOST_GROW), 1)
    return 0 if mask.grown(grow).is_full else grow


def _edit(verb: str, photo: Photo, mask: Mask, options: Options, extra: dict[str, Any]) -> Edit:
    start = perf_counter()
    source = None if options.source is None else read_photo_mask(options.source, photo.size).inside
    parts = windows(mask.inside, source)
    prepared = perf_counter()
    seeds = [int(options.seed or 0) + variation for variation in range(options.variations)]
    images, seams, details = [], [], []
    for variation, seed in enumerate(seeds):
        patches: list[Patch] = []
        scores = []
        for number, box in enumerate(parts):
            part = slice(box[1], box[3]), slice(box[0], box[2])
            inside, given = mask.cropped(box), photo.pixels(box)
            usable = None if source is None else source[part]
            report = _Report(options, number, len(parts), variation, given)
            if options.fill == "patches":
                try:
                    filled = patch_fill(
                        given, inside.inside, source=usable, seed=seed, progress=report, is_window=True
                    )
                except Stopped:
                    raise Cancelled("The edit was cancelled; nothing was changed.") from None
            else:
                filled = fill_hole(given, inside.inside, options.fill, seed=seed)
            joined = join(given, filled, inside, feather=options.feather or 0, method="plain")
            patches.append((box, joined, (joined != given).any(axis=-1) | inside.hard))
            scores.append((seam_score(Image.fromarray(joined), inside), detail_score(joined, inside)))
        images.append(photo.with_painted(patches))
        seams.append(mean_of_known([seam for seam, _ in scores]))
        details.append(mean_of_known([detail for _, detail in scores]))
    settings = {
        "verb": verb,
        "version": version("retouch"),
        **{name: value for name, value in options.to_dict().items() if name in _APPLICABLE},
        **extra,
        "seed": seeds[0],
    }
    crops = [Crop(box, box[2] - box[0], box[3] - box[1]) for box in parts]
    timings = {"prepare": prepared - start, "fill": perf_counter() - prepared}
    return Edit(
        images,
        seeds,
        seams,
        mask.image(),
        crops,
        mask.coverage,
        settings,
        timings,
        photo,
        details=details,
    )


class _Report:
    """Tells an edit's `progress` function of the parts of the photo that are filled."""

    def __init__(self, options: Options, number: int, parts: int, variation: int, given: np.ndarray) -> None:
        self.options, self.number, self.parts = options, number, parts
        self.variation, self.given = variation, given

    def __call__(self, done: int, of: int) -> bool:
        if self.options.progress is None:
            return True
        update = Update(
            done,
            of,
            self.number + 1,
            self.parts,
            self.variation + 1,
            self.options.variations,
            lambda: Image.fromarray(self.given),
        )
        return self.options.progress(update) is not False
