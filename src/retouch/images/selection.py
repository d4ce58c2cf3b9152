"""Marking a part of a photo: an ellipse, a colour, the transparent part, or the object in a box.

Each function returns (height, width), true or 1 where the photo is marked; `read_photo_mask` joins them, and
reads boxes and polygons itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageColor

from retouch.errors import InputError

# GrabCut takes longer at a higher resolution, with hardly a better result.
_GRABCUT_SIDE = 640
_GRABCUT_ROUNDS = 5


def ellipse(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the ellipse that touches the sides of a box (left, top, right, bottom), in a photo of `size`."""
    left, top, right, bottom = box
    if not (left < right and top < bottom):
        raise InputError(
            f"The ellipse's box {tuple(box)} is not (left, top, right, bottom) in pixels with left < right "
            f"and top < bottom. The photo is {size[0]}x{size[1]}.",
            parameter="ellipse",
        )
    across = (np.arange(size[0], dtype=np.float32) + 0.5 - (left + right) / 2) / ((right - left) / 2)
    down = (np.arange(size[1], dtype=np.float32) + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


def of_color(pixels: np.ndarray, color: str, tolerance: float = 32) -> np.ndarray:
    """Return where each channel of `pixels` (height, width, 3) is within `tolerance` levels of `color`."""
    try:
        wanted = ImageColor.getrgb(color)[:3]
    except ValueError:
        raise InputError(
            f"color={color!r} is not a colour. Accepted are '#rrggbb', 'rgb(255, 0, 0)' and names such as "
            f"'red'. Pick one in a picture viewer.",
            parameter="color",
        ) from None
    if not 0 <= tolerance <= 255:
        raise InputError(
            f"tolerance={tolerance:g} is outside 0 to 255; 32 takes in the shades of a colour.",
            parameter="tolerance",
        )
    low, high = (np.clip(np.array(wanted) + by, 0, 255) for by in (-tolerance, tolerance))
    return cv2.inRange(pixels, low, high) > 0


def transparent(image: Image.Image) -> np.ndarray:
    """Return the transparency of each pixel, 0 to 1: the part of a photo that was erased in an editor."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise InputError(
            f"The photo (mode {image.mode}) has no alpha channel, so nothing in it is transparent. Erase the "
            f"part in a picture editor and save as PNG, or mark it in another way.",
            parameter="alpha",
        )
    return 1 - np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255


def object_in(pixels: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Return the object inside a box (x, y, width, height), separated from its surroundings by GrabCut."""
    height, width = pixels.shape[:2]
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    right, bottom = min(width, round(box[0] + box[2])), min(height, round(box[1] + box[3]))
    if right - left < 3 or bottom - top < 3:
        raise InputError(
            f"The box {tuple(box)} is not (x, y, width, height) in pixels with something of the photo in it, "
            f"which is {width}x{height}. Draw it a little larger than the object.",
            parameter="grabcut",
        )
    # The background next to the box is enough to learn from.
    margin = max(8, max(right - left, bottom - top) // 3)
    around = (
        slice(max(0, top - margin), min(height, bottom + margin)),
        slice(max(0, left - margin), min(width, right + margin)),
    )
    part = pixels[around]
    if part.shape[:2] == (bottom - top, right - left):
        raise InputError(
            f"The box {tuple(box)} covers the whole photo ({width}x{height}), so nothing shows what the "
            f"background looks like. Draw it around the object with some background left outside.",
            parameter="grabcut",
        )
    found = np.zeros((height, width), bool)
    found[around] = _cut(part, (left - around[1].start, top - around[0].start, right - left, bottom - top))
    if not found.any():
        raise InputError(
            f"Nothing in the box {tuple(box)} stands out from its surroundings. GrabCut needs an object of "
            "other colours than its background. Try a tighter box, or draw a polygon.",
            parameter="grabcut",
        )
    return found


def _cut(part: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Run GrabCut at a bounded size."""
    height, width = part.shape[:2]
    scale = min(1.0, _GRABCUT_SIDE / max(height, width))
    small = (max(4, round(width * scale)), max(4, round(height * scale)))
    picture = cv2.cvtColor(cv2.resize(part, small, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    x, y = (round(value * scale) for value in box[:2])
    inner = (x, y, max(1, round(box[2] * scale)), max(1, round(box[3] * scale)))
    labels = np.zeros(picture.shape[:2], np.uint8)
    cv2.setRNGSeed(0)  # GrabCut starts from random clusters; the same photo must give the same mask
    try:
        cv2.grabCut(
            picture,
            labels,
            inner,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            _GRABCUT_ROUNDS,
            cv2.GC_INIT_WITH_RECT,
        )
    except cv2.error:  # a plain surface, which has no clusters
        return np.zeros((height, width), bool)
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    return cv2.resize(inside, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
