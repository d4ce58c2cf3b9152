"""Filling holes with patches of the same photo, at its own resolution and without a model.

Each hole is filled in a window around it, so that the cost follows the holes, not the photo. The native code
in patch_fill.cpp does the work; it is an optional part of the package. Without it PyPatchMatch does, and
without that numpy.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.crops import merged
from retouch.images.interpolate import harmonic
from retouch.images.mask import Box, Mask
from retouch.images.patch_fill_numpy import SIDE, fill_in_numpy, has_patch

Progress = Callable[[int, int], Any]  # given what is done of how much; False stops

_LEAST_CONTEXT = 128  # pixels of the photo around a hole, or the hole's longer side if that is more
_RING = 12  # pixels around the hole in which the fill is compared with the photo
_EVEN = 2.0  # standard deviation in pixels, over which that difference is averaged
_SHIFT = 24.0  # levels by which colours of fill and photo differ at most, as a rule
_MOST_PIXELS = 2**28  # of a window, because the native code counts patches in 32 bits
_PACKAGE = threading.Lock()  # PyPatchMatch has one seed for the whole process
_PACKAGE_REACH = 3  # pixels of its patches to each side of their middle, as in its examples
_DONE, _STOPPED, _NOTHING_TO_COPY = range(3)  # what the native code returns


class Stopped(Exception):
    """The progress function returned False."""


def patch_fill(
    pixels: np.ndarray,
    inside: np.ndarray,
    *,
    source: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    is_window: bool = False,
) -> np.ndarray:
    """Return a copy of `pixels` ((height, width, 3) of 8 bits), filled where `inside` is true.

    Only known pixels are copied, with `source` (height, width) only those where it is true. The same
    arguments give the same pixels, whatever the number of threads; without the native code they are others.
    `progress(done, of)` stops the work with `Stopped` if it returns False. `is_window`: the picture is one of
    `windows`, so it is not divided again.

    PyPatchMatch cannot be stopped within a window, and mixes in a little of what is next to `source`.
    """
    result = pixels.copy()
    if not inside.any():
        return result
    usable = ~inside if source is None else ~inside & source
    if not has_patch(usable):
        raise _nothing_to_copy()
    height, width = inside.shape
    boxes = [(0, 0, width, height)] if is_window else windows(inside, source)
    parts = [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in boxes]
    for part in parts:
        if not has_patch(usable[part]):
            raise _nothing_to_copy()
        if usable[part].size > _MOST_PIXELS:
            raise InputError(
                f"The part of the photo that fills a hole has {usable[part].size} pixels. At most "
                f"{_MOST_PIXELS} are accepted. Make the photo smaller or use fill='telea'.",
                parameter="mask",
            )
    fill = _method()
    for number, part in enumerate(parts):

        def tell(done: int, of: int, before: int = number) -> Any:
            return True if progress is None else progress(before * of + done, len(parts) * of)

        given = np.ascontiguousarray(result[part])
        # One seed for all, so that a hole is filled the same whatever other holes there are.
        result[part] = fill(given, inside[part], usable[part], seed % 2**32, tell)
    return result


def windows(inside: np.ndarray, source: np.ndarray | None) -> list[Box]:
    """Return the parts of a photo to fill one by one: each hole with its surroundings and the source."""
    mask = Mask(inside.astype(np.float32))
    boxes = [with_surroundings(hole, mask.size) for hole in mask.holes()]
    if source is not None:
        if not source.any():
            raise _nothing_to_copy()
        (first, last), (upper, lower) = (np.flatnonzero(source.any(axis=axis))[[0, -1]] for axis in (0, 1))
        boxes.append((first, upper, last + 1, lower + 1))
        edges = np.array(boxes)
        boxes = [(*edges[:, :2].min(axis=0).tolist(), *edges[:, 2:].max(axis=0).tolist())]
    return merged(boxes, mask.size)


def with_surroundings(hole: Box, size: tuple[int, int]) -> Box:
    """Return the part of a photo of `size` (width, height) that a hole is filled in."""
    left, top, right, bottom = hole
    more = max(right - left, bottom - top, _LEAST_CONTEXT)
    return max(left - more, 0), max(top - more, 0), min(right + more, size[0]), min(bottom + more, size[1])


def _joined(photo: np.ndarray, painted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Put a fill into its photo, its colours corrected by how it differs from the photo around the hole.

    The native code does better than that itself.
    """
    result = photo.copy()
    left, top, right, bottom = Mask(inside.astype(np.float32)).box
    part = slice(max(0, top - _RING), bottom + _RING), slice(max(0, left - _RING), right + _RING)
    hole, kept = inside[part], (~inside[part]).astype(np.float32)
    apart = photo[part].astype(np.float32) - painted[part]
    # A large difference is a thing that ends at the hole, not a shift of colour.
    weight = (kept * np.exp(-np.square(apart).mean(axis=-1) / _SHIFT**2))[..., None]
    share = cv2.GaussianBlur(weight, (0, 0), _EVEN)[..., None]
    shift = cv2.GaussianBlur(apart * weight, (0, 0), _EVEN) / (share + 0.05)
    correction = harmonic(shift, ~hole)
    corrected = np.clip(np.rint(painted[part] + correction), 0, 255).astype(np.uint8)
    result[part][hole] = corrected[hole]
    return result


def _method() -> Callable[..., np.ndarray]:
    """Return the best way to fill that this installation has."""
    try:
        native = importlib.import_module("retouch.images._patch_fill")
    except ImportError:  # not built
        pass
    else:
        return functools.partial(_natively, native)
    build = "Install a C++ compiler and Python's headers, then install retouch again."
    try:
        package = importlib.import_module("patchmatch")
        works = bool(getattr(package, "patchmatch_available", False))
    except ImportError:
        works = False
    if works:
        warnings.warn(
            "retouch was installed without its native code, so PyPatchMatch fills holes, which is slower, "
            f"less exact and cannot be stopped. {build}",
            stacklevel=3,
        )
        return functools.partial(_with_package, package)
    warnings.warn(
        "retouch was installed without its native code, so numpy fills holes, which takes six times as long. "
        + build,
        stacklevel=3,
    )
    return _in_numpy


def _natively(
    native: Any, pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray, seed: int, tell: Progress
) -> np.ndarray:
    painted = pixels.copy()
    hole, source = (np.ascontiguousarray(part, dtype=np.uint8) for part in (inside, usable))
    height, width = hole.shape
    outcome = native.fill(
        width, height, seed, painted.ctypes.data, hole.ctypes.data, source.ctypes.data, tell
    )
    if outcome == _STOPPED:
        raise Stopped
    if outcome == _NOTHING_TO_COPY:
        raise _nothing_to_copy()
    return painted


def _with_package(
    package: Any, pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray, seed: int, tell: Progress
) -> np.ndarray:
    if tell(0, 100) is False:
        raise Stopped
    with _PACKAGE:
        package.set_random_seed(seed)
        painted = package.inpaint(pixels, inside, global_mask=~inside & ~usable, patch_size=_PACKAGE_REACH)
    if tell(100, 100) is False:
        raise Stopped
    return _joined(pixels, painted, inside)


def _in_numpy(
    pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray, seed: int, tell: Progress
) -> np.ndarray:
    painted = fill_in_numpy(pixels, inside, usable, seed, tell)
    if painted is None:
        raise Stopped
    return _joined(pixels, painted, inside)


def _nothing_to_copy() -> InputError:
    return InputError(
        f"There is nothing to fill the hole with: no place of {SIDE}x{SIDE} pixels around it may be copied. "
        "Leave more of the photo outside the mask and inside source, or use fill='telea'.",
        parameter="mask",
    )
