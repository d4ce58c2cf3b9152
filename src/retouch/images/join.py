"""Putting a painted crop back into its photo, so that neither an edge nor a change of colour shows.

A model redraws the whole crop, and its VAE shifts colours a little everywhere. On the ring around what was
repainted both the photo and the redrawn version are known: their difference there says what to correct.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.holes import distance
from retouch.images.interpolate import harmonic

Method = Literal["plain", "match", "poisson"]

_CORRECTED_AT = 512  # longer side in pixels
_RING = 8.0  # pixels that the ring is wide, at least
_BLUR = 8.0  # standard deviation in pixels


def join(
    photo: np.ndarray,
    painted: np.ndarray,
    hole: np.ndarray,
    *,
    feather: float = 0.0,
    method: Method = "match",
    reach: float = 0.0,
) -> np.ndarray:
    """`painted` (height, width, 3) in the hole of `photo`; beyond `feather` pixels, `photo` to the byte.

    "plain" pastes. "match" corrects colours by the smoothed difference on the ring, which begins where
    nothing was repainted, `reach` pixels from the hole. "poisson" keeps the gradients of `painted` and the
    colours of `photo` at the hole's edge (gradient-domain join): no edge is left and no feather is needed,
    but where something new touches the edge, it takes on the colours there.
    """
    if method not in get_args(Method):
        raise InputError(f"join={method!r} is unknown. Accepted are {', '.join(get_args(Method))}.")
    inside = hole > 0
    if not inside.any():
        return photo.copy()
    if not inside.all() and method == "match":
        painted = np.clip(painted + _shift(photo, painted, inside, max(feather, reach)), 0, 255)
    elif not inside.all() and method == "poisson":
        painted = np.clip(painted + harmonic(photo.astype(np.float32) - painted, ~inside), 0, 255)
    alpha = softened(hole.astype(np.float32), feather)[..., None]
    blended = alpha * painted.astype(np.float32) + (1 - alpha) * photo
    return np.where(alpha > 0, np.rint(blended), photo).astype(photo.dtype)


def _shift(photo: np.ndarray, painted: np.ndarray, inside: np.ndarray, reach: float) -> np.ndarray:
    """What to add to `painted` so that its colours are those of `photo` around the hole."""
    height, width = inside.shape
    shrink = _CORRECTED_AT / max(height, width)
    if shrink < 1:  # what is smooth needs no more resolution
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        seen = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        drawn = cv2.resize(painted, size, interpolation=cv2.INTER_AREA)
        # Half a pixel of the hole makes a small pixel of it: what the model painted is not the photo's.
        hole = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
        if not hole.all():
            field = _shift(seen, drawn, hole, reach * shrink)
            return cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    away = distance(~inside)
    reach = min(reach, float(away.max()) / 2)  # a crop with little around the hole
    ring = ~inside & (away > reach) & (away <= reach + max(_RING, reach))
    # Single pixels differ by what the VAE could not draw; only their mean is a shift of colour.
    return harmonic(_blurred(photo.astype(np.float32) - painted, ring), ring)


def _blurred(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of the neighbours within the region, weighted by distance; outliers count as the limit."""
    inside = values[where]
    middle = np.median(inside, axis=0)
    limit = 3 * np.median(np.abs(inside - middle), axis=0) + 2
    values = np.clip(values, middle - limit, middle + limit)
    weight = where.astype(np.float32)[..., None]
    summed = cv2.GaussianBlur(values * weight, (0, 0), _BLUR)
    share = cv2.GaussianBlur(weight, (0, 0), _BLUR)[..., None]
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
