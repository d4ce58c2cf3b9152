"""What to repaint: a hole from whatever it is given as, its separate parts, and a crop around each.

No pixel of the photo is looked at here, and nothing is guessed: a mask that could mean two things is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from retouch.errors import InputError
from retouch.images.files import load_image
from retouch.images.masks import mask_values
from retouch.images.modes import eight_bit

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded
MaskMode = Literal["auto", "luma", "alpha"]

# Levels this close to black or white are meant as such: a JPEG's black is full of specks.
_BLACK, _WHITE = 12, 243
_CELL = 8  # pixels; parts of a hole that are nearer to each other than that are one
_SLIMMEST = 0.6  # of a crop's longer side the other one has at least so much
_STRETCHED = 8.0  # crops that are longer than so many times their width are worked on at this aspect
_RING = 8  # pixels around a hole that the join compares


@dataclass(frozen=True)
class Hole:
    """What is repainted: (height, width) from 0 (kept) to 255."""

    levels: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The same from 0 to 1."""
        return self.levels.astype(np.float32) / 255

    @property
    def inside(self) -> np.ndarray:
        """All that may change."""
        return self.levels > 0

    @property
    def coverage(self) -> float:
        """The part of the photo that is repainted, 0 to 1."""
        return float(np.count_nonzero(self.levels >= 128) / self.levels.size)

    @property
    def box(self) -> Box:
        """The smallest box around all of it."""
        return _bounds(self.levels)

    def image(self) -> Image.Image:
        """As a picture, white where it is repainted."""
        return Image.fromarray(self.levels)


@dataclass(frozen=True)
class Crop:
    """A part of the photo to work on, and the size that it is worked on at."""

    box: Box
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the photo."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

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
    if mask_mode not in get_args(MaskMode):
        raise InputError(f"mask_mode={mask_mode!r} is unknown; use 'auto', 'luma' or 'alpha'.")
    levels = _levels(mask, size, mask_mode, fit_mask)
    if invert:
        levels = 255 - levels
    if not levels.any():
        raise InputError(
            "The mask is empty: nothing in it is white, so there is nothing to repaint. White marks what to "
            "repaint; use invert=True if it marks what to keep."
        )
    if grow:
        levels = _grown(levels, grow)
        if not levels.any():
            raise InputError(f"grow={grow} leaves nothing of the mask. Shrink it by less.")
    if levels.min() == 255:
        raise InputError(
            "The mask is all white: nothing of the photo would be kept. Use invert=True if white marks what "
            "to keep, or image2image to change a whole picture."
        )
    return Hole(levels)


def _levels(mask: Any, size: tuple[int, int], mode: MaskMode, fit: bool) -> np.ndarray:
    if isinstance(mask, np.ndarray | Tensor):
        return _fitted(_array(mask), size, fit)
    if isinstance(mask, list | tuple):
        if not mask:
            raise InputError(
                "The mask is an empty list. Give a box, a polygon, a picture or a list of these."
            )
        if _numbers(mask):
            return _box(mask, size)
        if all(isinstance(part, tuple | list) and len(part) == 2 and _numbers(part) for part in mask):
            return _polygon(mask, size)
        levels = _levels(mask[0], size, mode, fit)
        for part in mask[1:]:
            levels = np.maximum(levels, _levels(part, size, mode, fit))
        return levels
    try:
        picture = load_image(mask, lambda opened: opened)
    except InputError as error:
        raise InputError(f"The mask cannot be used. {error}") from error
    return _fitted(_channel(picture, mode), size, fit)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def _box(box: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]) or not np.isfinite(box).all():
        raise InputError(
            f"The box {tuple(box)} is not (left, top, right, bottom) in pixels with left < right and top < "
            f"bottom. The photo is {width}x{height}."
        )
    if max(box) <= 1 and any(value % 1 for value in box):
        raise InputError(
            f"The box {tuple(box)} seems to be in fractions of the photo, which is {width}x{height}. Pixels "
            f"are accepted. Multiply by its width and height."
        )
    left, top, right, bottom = (max(round(float(value)), 0) for value in box)
    levels = np.zeros((height, width), np.uint8)
    levels[top:bottom, left:right] = 255
    return levels


def _polygon(points: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    if len(points) < 3 or not np.isfinite(points).all():
        raise InputError(
            f"The polygon has {len(points)} points, or one that is not finite. At least three (x, y) pairs "
            f"in pixels enclose something. The photo is {size[0]}x{size[1]}."
        )
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.array(canvas)


def _array(given: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(given, np.ndarray) and given.dtype == bool and given.ndim == 2 and given.size:
        return given.astype(np.uint8) * np.uint8(255)
    values = mask_values(given, "The mask")
    if len(values) != 1:
        raise InputError(
            f"The mask has the shape {tuple(given.shape)}, which is {len(values)} masks. One for the "
            f"photo is accepted, (height, width). Join them with numpy.maximum.reduce."
        )
    return _snapped(np.rint(255 * values[0, 0].numpy()).astype(np.uint8))


def _channel(picture: Image.Image, mode: MaskMode) -> np.ndarray:
    """The brightness or the alpha of a mask picture, whichever says something."""
    picture = eight_bit(picture, "The mask")
    try:
        luma = np.array(picture.convert("L"))
    except ValueError as error:
        raise InputError(
            f"The mask has mode {picture.mode}, which says nothing of brightness. Accepted are the usual "
            f"ones such as L, RGB and RGBA. Convert it with mask.convert('L')."
        ) from error
    if "A" not in picture.getbands():
        if mode == "alpha":
            raise InputError(
                f"mask_mode='alpha' was asked for, but the mask (mode {picture.mode}) has no alpha channel. "
                "Use mask_mode='luma' for its brightness."
            )
        return _snapped(luma)
    alpha = np.array(picture.getchannel("A"))
    is_plain, is_opaque = luma.min() == luma.max(), alpha.min() == 255
    if mode == "luma" or (mode == "auto" and is_opaque):
        return _snapped(luma)
    if mode == "alpha" or (is_plain and alpha.min() != alpha.max()):
        return _snapped(alpha)
    raise InputError(
        "The mask has both a picture and an alpha channel that is not fully opaque, so it could mean either. "
        "Say which with mask_mode='luma' or mask_mode='alpha'."
    )


def _snapped(levels: np.ndarray) -> np.ndarray:
    levels[levels <= _BLACK] = 0
    levels[levels >= _WHITE] = 255
    return levels


def _fitted(levels: np.ndarray, size: tuple[int, int], fit: bool) -> np.ndarray:
    height, width = levels.shape
    if (width, height) == size:
        return levels
    if not fit:
        raise InputError(
            f"The mask is {width}x{height} but the photo is {size[0]}x{size[1]}. They must match; give "
            f"fit_mask=True to stretch the mask over the photo, or make one of its size."
        )
    return np.array(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))


def _grown(levels: np.ndarray, by: float) -> np.ndarray:
    """By distance; only near the hole, since distances over a whole photo take long."""
    if not (isinstance(by, int | float | np.number) and math.isfinite(by)):
        raise InputError(f"grow={by!r} is not a number of pixels. Give 8 to widen the mask, -8 to shrink it.")
    height, width = levels.shape
    left, top, right, bottom = _bounds(levels)
    margin = math.ceil(max(by, 0)) + 1
    near = (
        slice(max(top - margin, 0), min(bottom + margin, height)),
        slice(max(left - margin, 0), min(right + margin, width)),
    )
    levels, part = levels.copy(), levels[near]
    hard = (part >= 128).astype(np.uint8)
    if by > 0:
        within = distance(1 - hard) <= by
        levels[near] = np.where(within & hard.any(), 255, part)
    else:
        levels[near] = np.where(distance(hard) > -by, part, 0)
    return levels


def distance(outside: np.ndarray) -> np.ndarray:
    """From each pixel where `outside` is not 0 to the nearest where it is, exactly."""
    return cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def crops(
    hole: Hole,
    working_size: int,
    *,
    context: float | str = "50%",
    feather: float = 0,
    factor: int = 8,
    square: bool = False,
) -> list[Crop]:
    """A crop for each separate part of the hole, near ones together; no two overlap.

    `context`: how much of the photo to show around a part, in pixels or in per cent of its longer side. Each
    crop is worked on at about `working_size` squared pixels, aspect kept, sides multiples of `factor`. With
    `square` it is so wherever the photo lets it and no other crop is near.
    """
    size = hole.levels.shape[1], hole.levels.shape[0]
    slimmest = 1.0 if square else _SLIMMEST
    boxes = [
        _with_context(box, context, feather, working_size, size, slimmest) for box in _parts(hole.levels)
    ]
    return [_crop(box, working_size, factor) for box in sorted(_merged(boxes, size))]


def _parts(levels: np.ndarray) -> list[Box]:
    """The boxes of the connected parts."""
    first, above, right, bottom = _bounds(levels)  # most of a large photo need not be looked through
    first, above = first // _CELL * _CELL, above // _CELL * _CELL
    cells = levels[above:bottom, first:right]
    for axis in (0, 1):
        cells = np.maximum.reduceat(cells, np.arange(0, cells.shape[axis], _CELL), axis=axis)
    count, _, stats, _ = cv2.connectedComponentsWithStats((cells > 0).astype(np.uint8), connectivity=8)
    boxes = []
    for left, top, across, down, _ in (stats[1:count] * _CELL).tolist():
        left, top = left + first, top + above
        part = _bounds(levels[top : top + down, left : left + across])
        boxes.append((left + part[0], top + part[1], left + part[2], top + part[3]))
    return boxes


def _bounds(levels: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(levels.any(axis=1)), np.flatnonzero(levels.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _with_context(
    box: Box,
    context: float | str,
    feather: float,
    working_size: int,
    size: tuple[int, int],
    slimmest: float,
) -> Box:
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    # The join needs the ring and room for its feather, which grows with the crop.
    margin = max(context_in_pixels(context, longer), _RING + feather + 0.03 * longer)
    # A hole of a few pixels needs surroundings to make sense of, but not to be blown up without end.
    least = max(longer + 2 * margin, working_size / 4)
    across = max(right - left + 2 * margin, slimmest * least)
    down = max(bottom - top + 2 * margin, slimmest * least)
    (left, right), (top, bottom) = _span(left, right, across, size[0]), _span(top, bottom, down, size[1])
    return left, top, right, bottom


def context_in_pixels(context: float | str, longer: float) -> float:
    """A context in pixels: as it is, or in per cent of a hole's longer side."""
    try:
        if isinstance(context, str):
            if not context.strip().endswith("%"):
                raise ValueError
            pixels = longer * float(context.strip()[:-1]) / 100
        else:
            pixels = float(context)
        if not 0 <= pixels < math.inf:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"context={context!r} is not understood. Give pixels (64) or per cent of the hole ('50%'), 0 "
            "or more."
        ) from None
    return pixels


def _span(low: float, high: float, length: float, limit: int) -> tuple[int, int]:
    """An interval of at least `length` around low..high, pushed back where it leaves 0..limit."""
    length = min(math.ceil(max(length, high - low)), limit)
    start = math.floor((low + high - length) / 2)
    start = max(0, min(start, limit - length))
    return start, start + length


def _merged(boxes: list[Box], size: tuple[int, int]) -> list[Box]:
    """Boxes that meet become one, until none do: each pixel then has one crop.

    Drawn on a coarse canvas, since there may be as many as a mask has specks.
    """
    while True:
        edges = np.array(boxes)
        low, high = edges[:, :2] // _CELL, -(-edges[:, 2:] // _CELL)
        drawn = np.zeros((-(-size[1] // _CELL) + 1, -(-size[0] // _CELL) + 1), np.int32)
        for columns, rows, sign in ((low, low, 1), (high, low, -1), (low, high, -1), (high, high, 1)):
            np.add.at(drawn, (rows[:, 1], columns[:, 0]), sign)
        covered = drawn.cumsum(axis=0).cumsum(axis=1) > 0
        count, labels = cv2.connectedComponents(covered.astype(np.uint8), connectivity=4)
        if count - 1 == len(boxes):
            return boxes
        label = labels[low[:, 1], low[:, 0]] - 1
        merged = np.tile(np.array([*size, 0, 0]), (count - 1, 1))
        np.minimum.at(merged[:, :2], label, edges[:, :2])
        np.maximum.at(merged[:, 2:], label, edges[:, 2:])
        boxes = [(left, top, right, bottom) for left, top, right, bottom in merged.tolist()]


def _crop(box: Box, working_size: int, factor: int) -> Crop:
    """The working size of a box: about working_size squared pixels, multiples of `factor`.

    The longer side follows the shorter one, which keeps the aspect to half a multiple in it.
    """
    sides = box[2] - box[0], box[3] - box[1]
    aspect = min(max(sides) / min(sides), _STRETCHED)
    shorter = max(1, round(working_size / math.sqrt(aspect) / factor)) * factor
    longer = max(1, round(shorter * aspect / factor)) * factor
    return Crop(box, *((longer, shorter) if sides[0] >= sides[1] else (shorter, longer)))
