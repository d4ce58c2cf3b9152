"""How visible the edge of a repainted area is, as one number.

For neighbouring pixels p, q let d(p, q) be the mean over the channels of |p - q|, in levels of 0 to 255.
With J the mean of d over the pairs that the mask's edge divides, and R its mean over the pairs beside the
edge (both pixels on one side, within `ring` pixels of it),

    seam = (J + 1) / (R + 1)

1 means that the edge is as smooth as its surroundings; 2, that it jumps twice as hard. One level is added so
that a plain sky does not turn a step that nobody can see into a large number.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from retouch.errors import InputError
from retouch.images.masks import harden, mask_values
from retouch.images.modes import plain_rgb


def seam_score(image: Image.Image, mask: Image.Image, ring: int = 4) -> float:
    """The seam along the edge of `mask` in `image`; 1 is none. NaN if the mask has no edge."""
    pixels = np.asarray(plain_rgb(image), np.float32)
    inside = harden(mask_values(mask))[0, 0].numpy() > 0
    if inside.shape != pixels.shape[:2]:
        raise InputError(
            f"mask is {inside.shape[1]}x{inside.shape[0]} but image is {image.width}x{image.height}. A seam "
            f"is measured along a mask of the picture's size; resize the mask with mask.resize(image.size)."
        )
    near = _grown(inside, ring) & ~_grown(inside, -ring)
    across, beside = [], []
    for axis in (0, 1):
        jump = np.abs(np.diff(pixels, axis=axis)).mean(axis=-1)
        first, second = (inside[:-1], inside[1:]) if axis == 0 else (inside[:, :-1], inside[:, 1:])
        both_near = near[:-1] & near[1:] if axis == 0 else near[:, :-1] & near[:, 1:]
        across.append(jump[first != second])
        beside.append(jump[(first == second) & both_near])
    edge, surroundings = np.concatenate(across), np.concatenate(beside)
    if not edge.size or not surroundings.size:
        return float("nan")
    return float((edge.mean() + 1) / (surroundings.mean() + 1))


def change(before: Image.Image, after: Image.Image, mask: Image.Image) -> tuple[float, float]:
    """Mean change of a pixel in levels of 0 to 255, inside the mask and outside it."""
    moved = np.abs(np.asarray(plain_rgb(after), np.float32) - np.asarray(plain_rgb(before), np.float32))
    inside = harden(mask_values(mask))[0, 0].numpy() > 0
    inner, outer = moved[inside], moved[~inside]
    return float(inner.mean()) if inner.size else 0.0, float(outer.mean()) if outer.size else 0.0


def _grown(inside: np.ndarray, by: int) -> np.ndarray:
    """Grown by so many pixels in city-block distance; shrunk if negative."""
    if by < 0:
        return ~_grown(~inside, -by)
    for _ in range(by):
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        inside = grown
    return inside
