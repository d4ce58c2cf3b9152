"""Erasing and extending without a diffusion model: holes are filled with patches of the photo itself.

Nothing here needs torch, so an edit starts at once. `Method` is what another way to fill, such as a network
(erasers.py), does differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from retouch.editing.options import Margins, Options, Update, margins
from retouch.editing.result import Edit, mean_of_known
from retouch.errors import Cancelled, InputError
from retouch.images.crops import Crop
from retouch.images.detail import detail_score
from retouch.images.fill import fill_hole
from retouch.images.join import join
from retouch.images.mask import Mask
from retouch.images.mask_reading import read_source
from retouch.images.patch_fill import Stopped, patch_fill, windows
from retouch.images.patch_fill_numpy import SIDE, has_patch
from retouch.images.photo import Patch, Photo
from retouch.images.seam import seam_score


@dataclass(frozen=True)
class Method:
    """A way to fill the holes of a photo."""

    refusal: str  # what to say of another option, after its name
    applicable: tuple[str, ...]  # the options that it takes
    defaults: Mapping[str, Any]
    parts: Callable[[Mask, np.ndarray | None], list[Crop]]  # of a mask and of what may be copied
    # (pixels, mask of them, what of them may be copied, options, seed, progress(done, of)) -> pixels
    fill: Callable[[np.ndarray, Mask, np.ndarray | None, Options, int, Callable[[int, int], Any]], np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)  # more of them for the result


_FRAME_SEEN = 16  # lines at a photo's edge, of which up to half may be a frame
_GROW = 0.01  # of the longest hole's longer side, between these:
_LEAST_GROW, _MOST_GROW = 1.0, 8.0  # pixels


def erase(photo: Any, mask: Any, *, method: Method | None = None, **options: Any) -> Edit:
    """Remove what is under the mask, and a pixel or two more, by continuing its surroundings.

    `method`: None fills with patches.
    """
    method = method or PATCHES
    opened, wanted = Photo.open(photo), _options("erase", method, options)
    read = wanted.read_mask(mask, opened.size)
    if "grow" not in options:
        wanted = replace(wanted, grow=_usual_grow(read))
        read = read.grown(wanted.grow)
    return _edit("erase", opened, read, wanted, method, _source(wanted, opened.size))


def outpaint(
    photo: Any,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    aspect: str | float | None = None,
    method: Method | None = None,
    **options: Any,
) -> Edit:
    """Continue the photo beyond its edges, by pixels or to an aspect such as "16:9".

    Scans often have a thin dark or blurred frame. Where a side has one, it is repainted too; otherwise
    nothing inside the photo changes. `source` has the photo's size, not that of the result.
    `method`: None fills with patches.
    """
    method = method or PATCHES
    opened, wanted = Photo.open(photo), _options("outpaint", method, options)
    if wanted.invert:
        raise InputError(
            "invert=True has no meaning in outpaint, which repaints what is new. Leave it out.",
            parameter="invert",
        )
    if wanted.grow < 0:
        raise InputError(
            f"grow={wanted.grow} would leave a part of the new area empty. In outpaint it takes 0 or more.",
            parameter="grow",
        )
    sides = margins(opened.size, (left, top, right, bottom), aspect)
    source = _source(wanted, opened.size)
    canvas, new = opened.extended(*sides)
    if source is not None:
        of_photo, source = source, np.zeros_like(new)
        source[~new] = of_photo.ravel()
    mask = Mask(_with_frame(new, opened, sides).astype(np.float32)).grown(wanted.grow)
    if mask.is_full:
        raise InputError(
            f"grow={wanted.grow} leaves nothing of the photo. Grow the new area by less.", parameter="grow"
        )
    usable = ~mask.softened(wanted.feather or 0).inside
    if (
        method is PATCHES
        and wanted.fill == "patches"
        and not has_patch(usable if source is None else usable & source)
    ):
        width, height = opened.size
        raise InputError(
            f"The photo is {width}x{height} and has no place of {SIDE}x{SIDE} pixels that may be copied. "
            f"Use fill='telea'{'' if source is None else ', or a larger source'}.",
            parameter="photo" if source is None else "source",
        )
    return _edit("outpaint", canvas, mask, wanted, method, source, {"margins": list(sides)})


def _with_frame(new: np.ndarray, photo: Photo, sides: Margins) -> np.ndarray:
    """Return what of a canvas is new, with the photo's frame on the sides that are extended."""
    width, height = photo.size
    depth = min(_FRAME_SEEN, width // 4, height // 4)
    boxes = (0, 0, depth, height), (0, 0, width, depth), (width - depth, 0, width, height)
    strips = [photo.pixels(box).astype(np.float32) for box in (*boxes, (0, height - depth, width, height))]
    left, top, right, bottom = (
        frame_width(lines) if side else 0
        for lines, side in zip(
            (strips[0].swapaxes(0, 1), strips[1], strips[2].swapaxes(0, 1)[::-1], strips[3][::-1]),
            sides,
            strict=True,
        )
    )
    kept = ~new
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    result = np.ones_like(new)
    result[rows[0] + top : rows[-1] + 1 - bottom, columns[0] + left : columns[-1] + 1 - right] = False
    return result


def frame_width(lines: np.ndarray) -> int:
    """Return how many of the outermost lines are a frame; `lines` (lines, length, 3) go from the edge in.

    Lines of a photo differ from their neighbours by about the same everywhere; those of a frame by more.
    """
    if len(lines) < _FRAME_SEEN // 2:
        return 0  # a few lines do not show what is usual
    half = len(lines) // 2
    steps = np.median(np.abs(np.diff(lines, axis=0)).mean(axis=-1), axis=-1)
    (jumps,) = np.nonzero(steps[:half] > 2 * np.median(steps[half:]) + 4)
    return 0 if not len(jumps) else int(jumps[-1]) + 1


def _options(verb: str, method: Method, given: dict[str, Any]) -> Options:
    """Return checked options; those that the method does not have are refused."""
    for name in given:
        if name not in method.applicable and hasattr(Options, name):
            raise InputError(
                f"{name}={given[name]!r} is {method.refusal.format(verb=verb)}, or leave {name} out.",
                parameter=name,
            )
    options = Options.of(**{"feather": 0, "seed": 0, **method.defaults, **given})
    if options.fill == "original" and "fill" in method.applicable:
        raise InputError(
            f"fill='original' leaves what is in the hole. {verb} without a model takes the other fills; "
            "'patches' is the best one.",
            parameter="fill",
        )
    if options.source is not None and options.fill != "patches":
        raise InputError(
            f"source says which patches may be copied, but fill={options.fill!r} copies none. Leave one of "
            "them out.",
            parameter="source",
        )
    return options


def _source(options: Options, size: tuple[int, int]) -> np.ndarray | None:
    """Return which pixels of a photo may be copied; None: anything outside the hole."""
    if options.source is None:
        return None
    return read_source(options.source, size, mask_mode=options.mask_mode, fit_mask=options.fit_mask)


def _usual_grow(mask: Mask) -> float:
    """Return by how much to widen a mask: the edge of a thing still has colours of the thing."""
    longest = max(max(right - left, bottom - top) for left, top, right, bottom in mask.holes())
    grow = round(min(max(_GROW * longest, _LEAST_GROW), _MOST_GROW), 1)
    return 0 if mask.grown(grow).is_full else grow


def _windows(mask: Mask, source: np.ndarray | None) -> list[Crop]:
    return [Crop(box, box[2] - box[0], box[3] - box[1]) for box in windows(mask.inside, source)]


def _patches(
    pixels: np.ndarray,
    mask: Mask,
    usable: np.ndarray | None,
    options: Options,
    seed: int,
    tell: Callable[[int, int], Any],
) -> np.ndarray:
    if options.fill == "patches":
        return patch_fill(pixels, mask.inside, source=usable, seed=seed, progress=tell, is_window=True)
    filled = fill_hole(pixels, mask.inside, options.fill, seed=seed)
    if tell(1, 1) is False:
        raise Stopped
    return filled


MASK_OPTIONS = ("mask_mode", "invert", "grow", "fit_mask")
PATCHES = Method(
    "an option of painting by a model, and {verb} without a model copies patches of the photo. Name a model, "
    'such as model="sd15-inpaint"',
    (*MASK_OPTIONS, "fill", "source", "feather", "seed", "variations", "progress"),
    {"fill": "patches"},
    _windows,
    _patches,
    {"model": "patches"},
)


def _edit(
    verb: str,
    photo: Photo,
    mask: Mask,
    options: Options,
    method: Method,
    source: np.ndarray | None,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> Edit:
    start, feather = perf_counter(), options.feather or 0
    crops = method.parts(mask.softened(feather), source)
    prepared = perf_counter()
    seeds = [int(options.seed or 0) + variation for variation in range(options.variations)]
    images, seams, details = [], [], []
    for variation, seed in enumerate(seeds):
        patches: list[Patch] = []
        scores = []
        for number, crop in enumerate(crops):
            box = crop.box
            inside, given = mask.cropped(box), photo.pixels(box)
            usable = None if source is None else crop.of(source)
            report = _Report(options, number, len(crops), variation, given)
            try:
                # The new pixels reach as far as they are mixed with the old ones.
                filled = method.fill(given, inside.softened(feather), usable, options, seed, report)
            except Stopped:
                raise Cancelled("The edit was cancelled; nothing was changed.") from None
            joined = join(given, filled, inside, feather=feather, method="plain")
            patches.append((box, joined, (joined != given).any(axis=-1) | inside.hard))
            scores.append((seam_score(Image.fromarray(joined), inside), detail_score(joined, inside)))
        images.append(photo.with_painted(patches))
        seams.append(mean_of_known([seam for seam, _ in scores]))
        details.append(mean_of_known([detail for _, detail in scores]))
    settings = {
        "verb": verb,
        "version": version("retouch"),
        **method.settings,
        **{name: value for name, value in options.to_dict().items() if name in method.applicable},
        **extra,
        "seed": seeds[0],
    }
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
