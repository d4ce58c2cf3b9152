"""Putting a painted crop back into its photo, so that neither an edge nor a change of colour shows.

A model redraws the whole crop, and its VAE shifts colours a little everywhere. On the ring around the hole
both the photo and the redrawn version are known: their difference there says what to correct inside.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.holes import distance
from retouch.images.interpolate import harmonic, pull_push

Method = Literal["plain", "match", "poisson"]

_CORRECTED_AT = 512  # longer side in pixels


def join(
    photo: np.ndarray,
    painted: np.ndarray,
    hole: np.ndarray,
    *,
    feather: float = 0.0,
    method: Method = "match",
) -> np.ndarray:
    """`painted` (height, width, 3) in the hole of `photo`; beyond `feather` pixels, `photo` to the byte.

    "plain" pastes; "match" corrects the colours by the smoothed difference on the ring around the hole;
    "poisson" makes the difference vanish at the hole's edge and spreads it inwards as smoothly as can be
    (gradient-domain join), which also carries colours in where the new content touches the edge.
    """
    if method not in get_args(Method):
        raise InputError(f"join={method!r} is unknown. Accepted are {', '.join(get_args(Method))}.")
    inside = hole > 0
    if not inside.any():
        return photo.copy()
    hole = hole.astype(np.float32)
    if method != "plain" and not inside.all():
        painted = np.clip(painted + correction(photo, painted, inside, feather, method), 0, 255)
    alpha = softened(hole, feather)[..., None]
    blended = alpha * painted.astype(np.float32) + (1 - alpha) * photo
    return np.where(alpha > 0, np.rint(blended), photo).astype(photo.dtype)


def correction(
    photo: np.ndarray, painted: np.ndarray, inside: np.ndarray, feather: float, method: Method = "match"
) -> np.ndarray:
    """What to add to `painted` so that it agrees with `photo` around the hole."""
    height, width = inside.shape
    shrink = _CORRECTED_AT / max(height, width)
    if shrink < 1:  # what is smooth needs no more resolution
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        seen = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        drawn = cv2.resize(painted, size, interpolation=cv2.INTER_AREA)
        # Half a pixel of the hole makes a small pixel of it: what the model painted is not the photo's.
        hole = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
        if not hole.all():
            field = correction(seen, drawn, hole, feather * shrink, method)
            return cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    difference = photo.astype(np.float32) - painted
    ring = ~inside & (distance(~inside) <= max(8.0, 2 * feather))
    # Single pixels differ by what the VAE could not draw; only their mean is a shift of colour.
    smooth = _blurred(difference, ring, radius=4.0 if method == "poisson" else 12.0)
    return harmonic(smooth, ring) if method == "poisson" else pull_push(smooth, ring)


def _blurred(values: np.ndarray, where: np.ndarray, radius: float) -> np.ndarray:
    """The mean of the neighbours within the region, weighted by distance; outliers count as the limit."""
    inside = values[where]
    limit = 3 * np.median(np.abs(inside - np.median(inside, axis=0)), axis=0) + 2
    values = np.clip(values, np.median(inside, axis=0) - limit, np.median(inside, axis=0) + limit)
    weight = where.astype(np.float32)[..., None]
    summed = cv2.GaussianBlur(values * weight, (0, 0), radius)
    share = cv2.GaussianBlur(weight, (0, 0), radius)[..., None]
    return np.where(weight > 0, summed / np.maximum(share, 1e-6), 0)


def softened(hole: np.ndarray, feather: float) -> np.ndarray:
    """How much of the new is taken: all of it in the hole, fading out over `feather` pixels around it."""
    return np.maximum(hole, feathered(hole >= 0.5, feather))


def feathered(inside: np.ndarray, feather: float) -> np.ndarray:
    """1 in the hole, falling smoothly to 0; no more than that beyond `feather` pixels from it."""
    if feather <= 0 or not inside.any():
        return inside.astype(np.float32)
    away = distance(~inside)
    t = np.clip(1 - away / (feather + 1), 0, 1).astype(np.float32)
    return np.where(away <= feather, t * t * (3 - 2 * t), 0).astype(np.float32)
