"""What to repaint: a hole from whatever it is given as, its separate parts, and a crop around each.

No pixel of the photo is looked at here, and nothing is guessed: a mask that could mean two things is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw

from retouch.errors import InputError
from retouch.images.files import load_image
from retouch.images.modes import eight_bit

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded
MaskMode = Literal["auto", "luma", "alpha"]


@dataclass(frozen=True)
class Hole:
    """What is repainted, (height, width) from 0 (kept) to 1."""

    values: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """All that may change."""
        return self.values > 0

    @property
    def coverage(self) -> float:
        """The part of the photo that is repainted, 0 to 1."""
        return float((self.values >= 0.5).mean())

    @property
    def box(self) -> Box:
        """The smallest box around all of it."""
        return _bounds(self.inside)

    def image(self) -> Image.Image:
        """As a picture, white where it is repainted."""
        return Image.fromarray(np.rint(255 * self.values).astype(np.uint8))


@dataclass(frozen=True)
class Crop:
    """A part of the photo to work on, and the size that it is worked on at."""

    box: Box
    width: int
    height: int

    @property
    def scale(self) -> float:
        """Working pixels for each pixel of the photo along a side."""
        return self.width / (self.box[2] - self.box[0])

    def of(self, values: np.ndarray) -> np.ndarray:
        """This part of an array of the photo's size; a view."""
        left, top, right, bottom = self.box
        return values[top:bottom, left:right]


def read_hole(
    mask: Any,
    size: tuple[int, int],
    *,
    mask_mode: MaskMode = "auto",
    invert: bool = False,
    grow: float = 0,
    fit_mask: bool = False,
) -> Hole:
    """The hole in a photo of `size` (width, height).

    `mask`: a picture or its path (white is repainted; with transparency, `mask_mode` must say whether the
    brightness or the alpha is meant), a boolean or 0..1 or 0..255 array, a box (left, top, right, bottom), a
    polygon [(x, y), ...], or a list of these. `grow` widens it by so many pixels, or shrinks it if negative.
    """
    values = _values(mask, size, mask_mode, fit_mask)
    if invert:
        values = 1 - values
    if grow:
        values = _grown(values, grow)
    if not (values > 0).any():
        raise InputError(
            "The mask is empty: nothing in it is white, so there is nothing to repaint. White marks what to "
            "repaint; use invert=True if it marks what to keep."
        )
    if (values >= 1).all():
        raise InputError(
            "The mask is all white: nothing of the photo would be kept. Use invert=True if white marks what "
            "to keep, or image2image to change a whole picture."
        )
    return Hole(values)


def _values(mask: Any, size: tuple[int, int], mode: MaskMode, fit: bool) -> np.ndarray:
    if isinstance(mask, np.ndarray):
        return _array(mask, size, fit)
    if isinstance(mask, list | tuple):
        if not mask:
            raise InputError(
                "The mask is an empty list. Give a box, a polygon, a picture or a list of these."
            )
        if all(isinstance(part, int | float | np.number) for part in mask):
            return _box(mask, size)
        if all(isinstance(part, tuple | list) and len(part) == 2 and _numbers(part) for part in mask):
            return _polygon(mask, size)
        parts = [_values(part, size, mode, fit) for part in mask]
        return np.maximum.reduce(parts)
    picture = load_image(mask, lambda opened: opened)
    return _fitted(_channel(picture, mode), size, fit)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def _box(box: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise InputError(
            f"The box {tuple(box)} is not (left, top, right, bottom) in pixels with left < right and top < "
            f"bottom. The photo is {width}x{height}."
        )
    left, top, right, bottom = (round(float(value)) for value in box)
    values = np.zeros((height, width), np.float32)
    values[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return values


def _polygon(points: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    if len(points) < 3:
        raise InputError(
            f"The polygon has {len(points)} points. At least three (x, y) pairs in pixels enclose something."
        )
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas, np.float32) / 255


def _array(values: np.ndarray, size: tuple[int, int], fit: bool) -> np.ndarray:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        raise InputError(
            f"The mask is an array of {values.dtype} with the shape {values.shape}. Accepted are (height, "
            f"width) of booleans, of floats from 0 to 1, or of integers from 0 to 255."
        )
    numbers = values.astype(np.float32)
    high = 255.0 if values.dtype.kind in "iu" and numbers.max() > 1 else 1.0
    if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= high):
        raise InputError(
            f"The mask holds values from {numbers.min():g} to {numbers.max():g}, or NaN. Accepted are finite "
            f"values from 0 to {high:g} in an array of {values.dtype}. Scale them or use np.nan_to_num."
        )
    return _fitted(numbers / high, size, fit)


def _channel(picture: Image.Image, mode: MaskMode) -> np.ndarray:
    """The brightness or the alpha of a mask picture, whichever says something."""
    if mode not in ("auto", "luma", "alpha"):
        raise InputError(f"mask_mode={mode!r} is unknown; use 'auto', 'luma' or 'alpha'.")
    picture = eight_bit(picture)
    has_alpha = "A" in picture.getbands()
    luma = np.asarray(picture.convert("L"), np.float32) / 255
    if not has_alpha:
        if mode == "alpha":
            raise InputError(
                f"mask_mode='alpha' was asked for, but the mask (mode {picture.mode}) has no alpha channel. "
                "Use mask_mode='luma' for its brightness."
            )
        return luma
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    if mode == "luma":
        return luma
    if mode == "alpha" or (luma.min() == luma.max() and alpha.min() != alpha.max()):
        return alpha
    if alpha.min() == alpha.max() == 1:
        return luma
    raise InputError(
        "The mask has both a picture and an alpha channel that is not fully opaque, so it could mean either. "
        "Say which with mask_mode='luma' or mask_mode='alpha'."
    )


def _fitted(values: np.ndarray, size: tuple[int, int], fit: bool) -> np.ndarray:
    height, width = values.shape
    if (width, height) == size:
        return values
    if not fit:
        raise InputError(
            f"The mask is {width}x{height} but the photo is {size[0]}x{size[1]}. They must match; give "
            f"fit_mask=True to stretch the mask over the photo, or make one of its size."
        )
    return np.clip(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), 0, 1)


def _grown(values: np.ndarray, by: float) -> np.ndarray:
    size = 2 * math.ceil(abs(by)) + 1
    offsets = np.arange(size) - size // 2
    disc = (offsets[:, None] ** 2 + offsets[None] ** 2 <= by**2 + 0.5).astype(np.uint8)
    return (cv2.dilate if by > 0 else cv2.erode)(values, disc)


def crops(hole: Hole, working_size: int, *, context: float | str = "50%", factor: int = 8) -> list[Crop]:
    """A crop for each separate part of the hole, near ones together.

    `context`: how much of the photo to show around a part, in pixels or in per cent of its longer side. Each
    crop is worked on at about `working_size` squared pixels, aspect kept, sides multiples of `factor`.
    """
    height, width = hole.values.shape
    boxes = [_with_context(box, context, working_size, (width, height)) for box in _parts(hole.inside)]
    merged = _merged(boxes)
    return sorted(
        (_crop(box, working_size, factor, (width, height)) for box in merged), key=lambda crop: crop.box
    )


def _parts(inside: np.ndarray) -> list[Box]:
    """The boxes of the connected parts."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    return [
        (int(left), int(top), int(left + width), int(top + height))
        for left, top, width, height, _ in stats[1:count]
    ]


def _bounds(inside: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _with_context(box: Box, context: float | str, working_size: int, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    margin = _margin(context, longer)
    # A hole of a few pixels needs surroundings to make sense of, but not to be blown up without end.
    least = max(longer + 2 * margin, working_size / 4)
    across = max(right - left + 2 * margin, 0.6 * least)
    down = max(bottom - top + 2 * margin, 0.6 * least)
    return _box_of(_span(left, right, across, size[0]), _span(top, bottom, down, size[1]))


def _box_of(across: tuple[int, int], down: tuple[int, int]) -> Box:
    return across[0], down[0], across[1], down[1]


def _margin(context: float | str, longer: float) -> float:
    try:
        if isinstance(context, str):
            if not context.strip().endswith("%"):
                raise ValueError
            margin = longer * float(context.strip()[:-1]) / 100
        else:
            margin = float(context)
        if not 0 <= margin < math.inf:
            raise ValueError
    except ValueError:
        raise InputError(
            f"context={context!r} is not understood. Give pixels (64) or per cent of the hole ('50%'), 0 "
            "or more."
        ) from None
    return margin


def _span(low: float, high: float, length: float, limit: int) -> tuple[int, int]:
    """An interval of at least `length` around low..high, pushed back where it leaves 0..limit."""
    length = min(round(max(length, high - low)), limit)
    start = round((low + high - length) / 2)
    start = max(0, min(start, limit - length))
    return start, start + length


def _merged(boxes: list[Box]) -> list[Box]:
    """Overlapping boxes become one, until none overlap: each pixel then has one crop."""
    boxes = list(boxes)
    index = 0
    while index < len(boxes):
        a = boxes[index]
        other = next((j for j in range(index + 1, len(boxes)) if _overlap(a, boxes[j])), None)
        if other is None:
            index += 1
            continue
        b = boxes.pop(other)
        boxes[index] = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
        index = 0
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _crop(box: Box, working_size: int, factor: int, size: tuple[int, int]) -> Crop:
    """The working size of a box: its aspect, about working_size squared pixels, multiples of `factor`.

    The box grows by the few pixels that make both sides scale alike, where the photo has them.
    """
    sides = box[2] - box[0], box[3] - box[1]
    wanted = working_size / math.sqrt(sides[0] * sides[1])
    width, height = (max(factor, round(side * wanted / factor) * factor) for side in sides)
    scale = min(width / sides[0], height / sides[1])
    across = _span(box[0], box[2], width / scale, size[0])
    down = _span(box[1], box[3], height / scale, size[1])
    return Crop(_box_of(across, down), width, height)
