"""The matte of a painted thing: which pixels show it, and which only what the model put around it.

A small model paints at few pixels, so what it puts around a thing is a smear at the photo's resolution. With
the matte, only the thing is laid on a sharp background.
"""

from __future__ import annotations

import cv2
import numpy as np

from retouch.images.interpolate import pull_push
from retouch.images.mask import distance

_LOW, _HIGH = 7.0, 14.0  # distances of two colours (CIE 1976) between which the threshold lies
_EDGE, _NEAR = 0.6, 9  # share of the largest distance nearby, in a square of this side, at a thing's edge
_GLARING = 60.0  # larger distances count as this
_SOFT = 0.35  # part of the threshold over which the matte goes from 0 to 1, on either side
_LEAST = 0.004  # of the hole's area; a thing is no smaller
_SMALL = 0.04  # parts smaller than this share of the largest one are specks
_RIM = 5  # pixels along the hole's edge, in which a thing is no thinner than this
_SLIT = 5  # side in pixels of the disc that closes slits in the thing
_GAP = 0.06  # gaps in the thing smaller than this share of it are not background: eyes, windows
_RADIUS, _EPSILON = 2, 1e-3  # of the guided filter: pixels, and variance of colours from 0 to 1
_SQUARE = np.ones((3, 3), np.uint8)
_CORE = 0.95  # level from which a pixel's colour is the thing's alone
_VIVID, _CALM = (
    45.0,
    0.5,
)  # chroma that any photo can have; least factor of the thing's, of which half is used
_ROOM = 1.15  # times the chroma and the range of lightness of the surroundings


def find_matte(painted: np.ndarray, plain: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the matte of what `painted` shows in the hole and `plain` does not: levels from 0 to 1.

    Both are (height, width, 3) of 8 bits: the hole painted with the thing and without it. The matte is 0
    everywhere if nothing of size differs.
    """
    empty = np.zeros(inside.shape, np.float32)
    if not inside.any():
        return empty
    apart = np.linalg.norm(_lab(painted) - _lab(plain), axis=-1)
    apart = cv2.GaussianBlur(apart, (0, 0), 0.6)
    clear = float(np.clip(_otsu(apart[inside]), _LOW, _HIGH))
    # The painting of a glaring thing is blurred into its surroundings: its edge is where half is left.
    nearby = cv2.dilate(apart, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_NEAR, _NEAR)))
    threshold = np.maximum(clear, _EDGE * np.minimum(nearby, _GLARING))
    differs = _without_rim((apart > threshold) & inside, inside)
    parts = _parts(differs, least=_LEAST * np.count_nonzero(inside))
    if not parts.any():
        return empty
    whole = _without_gaps(parts) & inside
    levels = np.clip((apart / threshold - 1 + _SOFT) / (2 * _SOFT), 0, 1)
    levels = np.where(cv2.dilate(whole.astype(np.uint8), _SQUARE) > 0, levels, 0)
    levels = np.where(inside, levels, 0)
    levels[cv2.erode(whole.astype(np.uint8), _SQUARE) > 0] = 1  # only its edge is soft
    return levels.astype(np.float32)


def refine_matte(matte: np.ndarray, painted: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return a matte at the size of `picture`, its edges along those of the picture.

    `painted` is the same picture at the matte's size. A guided filter (He, Sun and Tang, 2010) in colour fits
    the matte to the colours of each small neighbourhood; the fit is applied at the larger size.
    """
    size = picture.shape[1], picture.shape[0]
    guide, side = painted.astype(np.float32) / 255, (2 * _RADIUS + 1, 2 * _RADIUS + 1)
    mean, middle = cv2.blur(guide, side), cv2.blur(matte, side)
    products = guide[..., :, None] * guide[..., None, :]
    spread = cv2.blur(products.reshape(*matte.shape, 9), side).reshape(products.shape)
    spread = spread - mean[..., :, None] * mean[..., None, :] + _EPSILON * np.eye(3, dtype=np.float32)
    shared = cv2.blur(guide * matte[..., None], side) - mean * middle[..., None]
    slope = np.linalg.solve(spread, shared[..., None])[..., 0]
    offset = middle - (slope * mean).sum(axis=-1)
    slope, offset = (
        cv2.resize(cv2.blur(part.astype(np.float32), side), size, interpolation=cv2.INTER_LINEAR)
        for part in (slope, offset)
    )
    fitted = (slope * (picture.astype(np.float32) / 255)).sum(axis=-1) + offset
    # Not far from the matte itself: beyond a few pixels the same colour is something else.
    reach = cv2.dilate(matte, np.ones((5, 5), np.uint8))
    reach = cv2.resize(reach, size, interpolation=cv2.INTER_LINEAR)
    t = np.clip((np.minimum(fitted, reach) - 0.25) / 0.5, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def lay(
    background: np.ndarray,
    picture: np.ndarray,
    matte: np.ndarray,
    around: np.ndarray,
    *,
    mixed: float = 1.0,
    fading: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return `background` with the thing of `picture` on it; all are of one size, `matte` from 0 to 1.

    `around` (height, width) says which pixels of the background show the photo: their colours limit the
    thing's. `mixed` is how many pixels inside the thing's edge have colours of what was painted around it.
    `fading` is how much of the thing is laid there, from 0 to 1.
    """
    if not (matte > 0).any():
        return background.copy()
    # These pixels get the colours of the thing next to them instead.
    side = 2 * max(1, round(mixed)) + 1
    solid = np.where(around, 1, matte).astype(
        np.float32
    )  # where the hole cuts it off is no edge of the thing
    core = cv2.erode(solid, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) >= _CORE
    core &= ~around
    colours = picture.astype(np.float32)
    if core.any():
        colours = pull_push(colours, cv2.GaussianBlur(core.astype(np.float32), (0, 0), 0.7) * core)
    if around.any():
        colours = _within_range(colours, matte, background[around])
    alpha = (matte * fading)[..., None]
    blended = alpha * colours + (1 - alpha) * background
    return np.where(alpha > 0, np.rint(np.clip(blended, 0, 255)), background).astype(np.uint8)


def _within_range(colours: np.ndarray, matte: np.ndarray, surroundings: np.ndarray) -> np.ndarray:
    """Return colours of a thing with no more chroma and lightness than its surroundings allow, half way."""
    lab = _lab(np.clip(colours, 0, 255))
    seen = _lab(surroundings[None])[0]
    thing = lab[matte > 0.5]
    if not len(thing):
        return colours
    vivid = float(np.percentile(np.hypot(thing[:, 1], thing[:, 2]), 95))
    usual = float(np.percentile(np.hypot(seen[:, 1], seen[:, 2]), 95))
    factor = np.clip(max(_ROOM * usual, _VIVID) / max(vivid, 1e-3), _CALM, 1)
    lab[..., 1:] *= (1 + factor) / 2
    low, high = np.percentile(thing[:, 0], [2, 98])
    floor, ceiling = np.percentile(seen[:, 0], [1, 99])
    middle, half = (floor + ceiling) / 2, max(_ROOM * (ceiling - floor) / 2, 25)
    floor, ceiling = max(middle - half, 0), min(middle + half, 100)
    aim = max(low, (low + floor) / 2), min(high, (high + ceiling) / 2)
    gain = max(aim[1] - aim[0], 1) / max(high - low, 1)
    lab[..., 0] = np.clip(aim[0] + (lab[..., 0] - low) * gain, 0, 100)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255


def _lab(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(pixels, dtype=np.float32) / 255, cv2.COLOR_RGB2LAB)


def _otsu(values: np.ndarray) -> float:
    """Return the threshold that parts values best into two groups."""
    scaled = np.clip(values * 4, 0, 255).astype(np.uint8)
    return cv2.threshold(scaled.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 4


def _parts(mask: np.ndarray, least: float) -> np.ndarray:
    """Return the connected parts of a mask without its specks."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0
    kept = areas >= max(least, _SMALL * areas.max())
    return kept[labels] if count > 1 else np.zeros_like(mask)


def _without_rim(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return a mask without thin lines along the hole's edge: there models and their VAEs leave some."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_RIM, _RIM))
    thick = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0
    return mask & (thick | (distance(inside) > _RIM))


def _without_gaps(parts: np.ndarray) -> np.ndarray:
    """Return the parts with their slits and small gaps closed."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_SLIT, _SLIT))
    parts = cv2.morphologyEx(parts.astype(np.uint8), cv2.MORPH_CLOSE, disc) > 0
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~parts).astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = np.inf
    return parts | (areas < _GAP * np.count_nonzero(parts))[labels]
