"""Putting a painted crop back into its photo without a visible edge or a change of colour.

A model redraws the whole crop, and its VAE shifts colours a little everywhere. On the ring around what was
repainted, both the photo and the redrawn version are known: their difference there says what to correct.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from retouch.images.interpolate import harmonic
from retouch.images.mask import Mask, distance

Method = Literal["plain", "match", "poisson"]

_CORRECTED_AT = 512  # longer side in pixels
_RING = 8.0  # minimum width of the ring in pixels
_BLUR = 8.0  # standard deviation in pixels


def join(
    photo: np.ndarray,
    painted: np.ndarray,
    mask: Mask,
    *,
    feather: float = 0.0,
    method: Method = "match",
    reach: float = 0.0,
) -> np.ndarray:
    """Return `photo` with `painted` (both (height, width, 3)) in the mask; unchanged beyond the feather.

    "plain" pastes. "match" corrects colours by the smoothed difference on the ring, which begins where
    nothing was repainted, `reach` pixels from the mask. "poisson" keeps the gradients of `painted` and the
    colours of `photo` at the mask's edge (gradient-domain join): no edge is left and no feather is needed,
    but where something new touches the edge, it takes on the colours there.
    """
    inside = mask.inside
    if mask.is_empty:
        return photo.copy()
    if not inside.all() and method == "match":
        painted = np.clip(painted + _shift(photo, painted, mask, max(feather, reach)), 0, 255)
    elif not inside.all() and method == "poisson":
        painted = np.clip(painted + harmonic(photo.astype(np.float32) - painted, ~inside), 0, 255)
    alpha = mask.softened(feather).levels[..., None]
    blended = alpha * painted.astype(np.float32) + (1 - alpha) * photo
    return np.where(alpha > 0, np.rint(blended), photo).astype(photo.dtype)


def _shift(photo: np.ndarray, painted: np.ndarray, mask: Mask, reach: float) -> np.ndarray:
    """Return what to add to `painted` so that its colours are those of `photo` around the mask."""
    shrink = _CORRECTED_AT / max(mask.size)
    if shrink < 1:  # a smooth field needs no more resolution
        size = max(1, round(mask.width * shrink)), max(1, round(mask.height * shrink))
        # Every small pixel that the mask touches counts as inside: its colour is partly the model's.
        smaller = mask.touched(*size)
        if not smaller.is_full:
            seen = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            drawn = cv2.resize(painted, size, interpolation=cv2.INTER_AREA)
            field = _shift(seen, drawn, smaller, reach * shrink)
            return cv2.resize(field, mask.size, interpolation=cv2.INTER_LINEAR)
    inside = mask.inside
    away = distance(~inside)
    reach = min(reach, float(away.max()) / 2)  # a crop with little around the mask
    ring = ~inside & (away > reach) & (away <= reach + max(_RING, reach))
    # Single pixels differ by what the VAE could not draw; only their mean is a shift of colour.
    return harmonic(_blurred(photo.astype(np.float32) - painted, ring), ring)


def _blurred(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the mean of the neighbours within the region, weighted by distance; outliers are clipped."""
    inside = values[where]
    middle = np.median(inside, axis=0)
    limit = 3 * np.median(np.abs(inside - middle), axis=0) + 2
    values = np.clip(values, middle - limit, middle + limit)
    weight = where.astype(np.float32)[..., None]
    summed = cv2.GaussianBlur(values * weight, (0, 0), _BLUR)
    share = cv2.GaussianBlur(weight, (0, 0), _BLUR)[..., None]
    return np.where(weight > 0, summed / np.maximum(share, 1e-6), 0)
