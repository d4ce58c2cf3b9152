"""The seam score: the visibility of a repainted area's edge as one number.

A sharp edge jumps between neighbouring pixels. One hidden under a feather does not, but the colours on its
two sides may still differ, over as many pixels as the feather is wide. So the jump is measured at several
scales s, between square windows of s x s pixels that lie in one row or column with s - 1 pixels between them.
For two such windows let d be the difference of their mean colours in levels of 0 to 255, averaged over the
channels without regard to sign. With J(s) the mean of d over the pairs that lie on different sides of the
mask's edge, and R(s) its mean over those on the same side, all within 4 s pixels of the edge,

    seam = geometric mean, over s = 1, 2, 4, 8, 16, of (J(s) + 1) / (R(s) + 1)

1 means that the edge is as smooth as its surroundings at all scales. One level is added so that a plain sky
does not turn a step that nobody can see into a large number. Scales too coarse for the mask are left out.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from retouch.errors import InputError
from retouch.images.mask import Mask, distance
from retouch.images.mask_reading import read_masks
from retouch.images.modes import plain_rgb

_SCALES = (1, 2, 4, 8, 16)
_RING = 4  # in scales


def seam_score(image: Image.Image, mask: Image.Image | Mask) -> float:
    """Return how visible the edge of `mask` is in `image`; 1 is not at all, NaN means there is no edge."""
    read = read_masks(mask, "mask")[0]
    if read.size != image.size:
        raise InputError(
            f"mask is {read.width}x{read.height} but image is {image.width}x{image.height}. A seam is "
            "measured along a mask of the picture's size; resize the mask with mask.resize(image.size).",
            parameter="mask",
        )
    inside = read.hard
    if inside.all() or not inside.any():
        return float("nan")
    pixels = np.asarray(plain_rgb(image), np.float32)
    away = np.where(inside, distance(inside), distance(~inside))
    known = [ratio for scale in _SCALES if (ratio := _at_scale(pixels, inside, away, scale)) is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else float("nan")


def _at_scale(pixels: np.ndarray, inside: np.ndarray, away: np.ndarray, scale: int) -> float | None:
    near = away <= (_RING + 1) * scale
    if min(inside.shape) < scale or not near.any():
        return None
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    colours, share, far = (_windows(field[part], scale) for field in (pixels, inside, away))
    close = far <= _RING * scale
    side = np.where(share > 0.999, 1, np.where(share < 0.001, -1, 0))  # 0: on both
    across, beside = [], []
    for axis in (0, 1):
        first, second = _pairs(colours, axis, scale)
        jump = np.abs(first - second).mean(axis=-1)
        both = np.multiply(*_pairs(side, axis, scale))
        is_close = np.logical_and(*_pairs(close, axis, scale))
        across.append(jump[both < 0])
        beside.append(jump[(both > 0) & is_close])
    edge, ring = np.concatenate(across), np.concatenate(beside)
    return float((edge.mean() + 1) / (ring.mean() + 1)) if edge.size and ring.size else None


def _windows(field: np.ndarray, scale: int) -> np.ndarray:
    """Return the means of all windows that lie in the field, by their first pixel."""
    means = cv2.blur(field.astype(np.float32), (scale, scale), anchor=(0, 0))
    return means[: field.shape[0] - scale + 1, : field.shape[1] - scale + 1]


def _pairs(field: np.ndarray, axis: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    step = 2 * scale - 1
    return (field[:-step], field[step:]) if axis == 0 else (field[:, :-step], field[:, step:])


def change(before: Image.Image, after: Image.Image, mask: Mask) -> tuple[float, float]:
    """Return the mean change of a pixel in levels of 0 to 255, inside the mask and outside it."""
    moved = np.abs(np.asarray(plain_rgb(after), np.float32) - np.asarray(plain_rgb(before), np.float32))
    inner, outer = moved[mask.hard], moved[~mask.hard]
    return float(inner.mean()) if inner.size else 0.0, float(outer.mean()) if outer.size else 0.0
