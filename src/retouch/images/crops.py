"""Crops of a photo: the parts to work on around each hole of a mask, and the size to work on them at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.mask import Box, Mask

_MIN_ASPECT = 0.6  # of a crop's shorter side to its longer one
_MAX_ASPECT = (
    8.0  # of a crop's longer side to its shorter one when it is worked on; longer crops are squeezed
)
_RING = 8  # pixels around a hole that the join compares
_CELL = 8  # pixels of a cell of the coarse canvas that boxes are merged on


@dataclass(frozen=True)
class Crop:
    """A part of the photo to work on, and the size to work on it at."""

    box: Box
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the photo."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return this part of an array of the photo's size; a view."""
        left, top, right, bottom = self.box
        return values[top:bottom, left:right]


def crops(
    mask: Mask,
    working_size: int,
    *,
    context: float | str = "50%",
    feather: float = 0,
    factor: int = 8,
    square: bool = False,
    least: float | None = None,
) -> list[Crop]:
    """Return a crop for each hole of the mask, one for holes that are near each other; no two overlap.

    `context` is how much of the photo to show around a hole, in pixels or in per cent of its longer side.
    Each crop is worked on at about `working_size` squared pixels, aspect kept, sides multiples of `factor`.
    With `square`, crops are square wherever the photo and other crops leave room. `least` is the side in
    pixels that a crop has at least where the photo has it; None takes a quarter of the working size.
    """
    min_aspect = 1.0 if square else _MIN_ASPECT
    least = working_size / 4 if least is None else least
    boxes = [_with_context(box, context, feather, least, mask.size, min_aspect) for box in mask.holes()]
    return [_crop(box, working_size, factor) for box in sorted(merged(boxes, mask.size))]


def context_in_pixels(context: float | str, longer: float) -> float:
    """Return a context in pixels, given in pixels or in per cent of a hole's longer side."""
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
            "or more.",
            parameter="context",
        ) from None
    return pixels


def _with_context(
    box: Box,
    context: float | str,
    feather: float,
    least: float,
    size: tuple[int, int],
    min_aspect: float,
) -> Box:
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    # The join needs the ring and room for its feather, which grows with the crop.
    margin = max(context_in_pixels(context, longer), _RING + feather + 0.03 * longer)
    # A hole of a few pixels needs surroundings that show what it is in, and must not be enlarged too far.
    least = max(longer + 2 * margin, least)
    across = max(right - left + 2 * margin, min_aspect * least)
    down = max(bottom - top + 2 * margin, min_aspect * least)
    (left, right), (top, bottom) = _span(left, right, across, size[0]), _span(top, bottom, down, size[1])
    return left, top, right, bottom


def _span(low: float, high: float, length: float, limit: int) -> tuple[int, int]:
    """Return an interval of at least `length` around low..high, pushed back where it leaves 0..limit."""
    length = min(math.ceil(max(length, high - low)), limit)
    start = math.floor((low + high - length) / 2)
    start = max(0, min(start, limit - length))
    return start, start + length


def merged(boxes: list[Box], size: tuple[int, int]) -> list[Box]:
    """Join boxes that meet until none do, so that each pixel has at most one crop.

    Done on a coarse canvas, since a mask of specks may have thousands of boxes.
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
    """Return the crop of a box: about working_size squared pixels, sides multiples of `factor`.

    The longer side follows the shorter one, so the aspect is off by at most half a multiple in it.
    """
    sides = box[2] - box[0], box[3] - box[1]
    aspect = min(max(sides) / min(sides), _MAX_ASPECT)
    shorter = max(1, round(working_size / math.sqrt(aspect) / factor)) * factor
    longer = max(1, round(shorter * aspect / factor)) * factor
    return Crop(box, *((longer, shorter) if sides[0] >= sides[1] else (shorter, longer)))
