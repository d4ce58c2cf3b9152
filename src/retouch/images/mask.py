"""The mask: which pixels of a photo are repainted, and how much.

A mask is read once (mask_reading.py) and stays one `Mask` from there on. Each rule about masks has its one
definition here: snapping, hardening, growing, feathering, resizing, and the way to a latent grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from PIL import Image

from retouch.errors import InputError
from retouch.images.sizes import fill_pixels, require_size, resize_picture

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded
Resampling = Literal["lanczos", "bilinear", "nearest-exact", "nearest"]

# Levels this close to black or white count as such: a JPEG's black is full of specks.
NEARLY_BLACK, NEARLY_WHITE = 0.05, 0.95
HALF = 0.5  # a hard mask repaints what is at least half white
_CELL = 8  # pixels; parts of the mask that are nearer to each other than that are one hole


@dataclass(frozen=True, eq=False)
class Mask:
    """Levels from 0 (kept) to 1 (repainted) for each pixel of a photo: (height, width) in float32.

    `resampling` names the filter that `resized` uses. It follows from the form in which the mask was given,
    because a seed gives the reference's picture only then: "lanczos" for pictures with greys, Pillow's
    nearest neighbour ("nearest-exact") for bilevel and palette pictures, and torch's "nearest" for arrays and
    tensors. Masks of the editing verbs use "bilinear".
    """

    levels: np.ndarray
    resampling: Resampling = "bilinear"

    @property
    def width(self) -> int:
        return self.levels.shape[1]

    @property
    def height(self) -> int:
        return self.levels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in Pillow's order."""
        return self.width, self.height

    @property
    def inside(self) -> np.ndarray:
        """True for each pixel that may change at all."""
        return self.levels > 0

    @property
    def hard(self) -> np.ndarray:
        """True for each pixel that is repainted where no greys are known."""
        return self.levels >= HALF

    @cached_property
    def is_empty(self) -> bool:
        """True if nothing is repainted."""
        return not self.levels.max() > 0

    @cached_property
    def is_full(self) -> bool:
        """True if nothing is kept, not even in part."""
        return bool(self.levels.min() >= 1)

    @cached_property
    def is_soft(self) -> bool:
        """True if any pixel is neither kept nor wholly repainted."""
        return bool(((self.levels > 0) & (self.levels < 1)).any())

    @cached_property
    def coverage(self) -> float:
        """Fraction of the photo that is repainted, 0 to 1."""
        return float(np.count_nonzero(self.hard) / self.levels.size)

    @cached_property
    def box(self) -> Box:
        """Smallest box around all that may change; of a mask that is not empty."""
        return _bounds(self.levels)

    def holes(self) -> list[Box]:
        """Return the boxes of the connected parts; parts within a few pixels of each other are one hole."""
        first, above, right, bottom = self.box  # most of a large photo need not be searched
        first, above = first // _CELL * _CELL, above // _CELL * _CELL
        cells = self.levels[above:bottom, first:right]
        for axis in (0, 1):
            cells = np.maximum.reduceat(cells, np.arange(0, cells.shape[axis], _CELL), axis=axis)
        count, _, stats, _ = cv2.connectedComponentsWithStats((cells > 0).astype(np.uint8), connectivity=8)
        boxes = []
        for left, top, across, down, _ in (stats[1:count] * _CELL).tolist():
            left, top = left + first, top + above
            part = _bounds(self.levels[top : top + down, left : left + across])
            boxes.append((left + part[0], top + part[1], left + part[2], top + part[3]))
        return boxes

    def crop_region(self, width: int, height: int, pad: int = 0) -> Box:
        """Return the mask's box, `pad` pixels wider, in the aspect of width x height.

        The aspect is met as far as the mask's own borders allow.
        """
        if width < 1 or height < 1 or pad < 0:
            raise InputError(
                f"width, height and pad are {width}, {height} and {pad}. A size of at least 1x1 and a pad of "
                "at least 0 are accepted. Pass the size that the crop will be processed at.",
                parameter="pad" if pad < 0 else "width" if width < 1 else "height",
            )
        if self.is_empty:
            raise InputError(
                "mask_image is entirely black, so there is no region to crop. A mask with some white is "
                "accepted, where white means repaint. If black marks what to repaint, invert the mask with "
                "PIL.ImageOps.invert.",
                parameter="mask_image",
            )
        left, top, right, bottom = self.box
        left, top = max(left - pad, 0), max(top - pad, 0)
        right, bottom = min(right + pad, self.width), min(bottom + pad, self.height)
        aspect = width / height
        if (right - left) / (bottom - top) > aspect:
            top, bottom = _widened(top, bottom, int((right - left) / aspect - (bottom - top)), self.height)
        else:
            left, right = _widened(left, right, int((bottom - top) * aspect - (right - left)), self.width)
        return left, top, right, bottom

    def inverted(self) -> Mask:
        """Return the mask that repaints what this one keeps."""
        return replace(self, levels=1 - self.levels)

    def hardened(self) -> Mask:
        """Return the mask in black and white only: at least half white becomes white."""
        return replace(self, levels=self.hard.astype(np.float32))

    def union(self, other: Mask) -> Mask:
        """Return the mask that repaints what either of two masks of one size does."""
        return replace(self, levels=np.maximum(self.levels, other.levels))

    def grown(self, by: float) -> Mask:
        """Return the mask widened by `by` pixels, or shrunk if that is negative. Greys beyond it stay."""
        if self.is_empty or not by:
            return self
        near = self._around(max(by, 0))
        levels, part = self.levels.copy(), self.levels[near]
        hard = part >= HALF
        if by > 0:
            levels[near] = np.where((distance(~hard) <= by) & hard.any(), 1, part)
        else:
            levels[near] = np.where(distance(hard) > -by, part, 0)
        return replace(self, levels=levels)

    def softened(self, feather: float) -> Mask:
        """Return the mask wholly white where it is at least half white, fading out over `feather` pixels."""
        if self.is_empty:
            return self
        near = self._around(max(feather, 0))
        levels, hard = self.levels.copy(), self.levels[near] >= HALF
        faded = hard.astype(np.float32)
        if feather > 0 and hard.any():
            away = distance(~hard)
            t = np.clip(1 - away / (feather + 1), 0, 1).astype(np.float32)
            faded = np.where(away <= feather, t * t * (3 - 2 * t), 0).astype(np.float32)
        np.maximum(levels[near], faded, out=levels[near])
        return replace(self, levels=levels)

    def _around(self, reach: float) -> tuple[slice, slice]:
        """Return the rows and columns within `reach` of the mask; distances over a whole photo take long."""
        left, top, right, bottom = self.box
        margin = math.ceil(reach) + 1
        return slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)

    def cropped(self, box: Box) -> Mask:
        """Return the part of the mask in a box."""
        left, top, right, bottom = box
        return replace(self, levels=self.levels[top:bottom, left:right])

    def padded(self, multiple: int) -> Mask:
        """Return the mask with sides of a multiple, grown by rows and columns that are kept."""
        missing = (0, -self.height % multiple), (0, -self.width % multiple)
        return replace(self, levels=np.pad(self.levels, missing)) if np.any(missing) else self

    def resized(self, width: int, height: int, mode: Literal["default", "fill"] = "default") -> Mask:
        """Return the mask at another size, by its own `resampling`; see `sizes.resize_picture` for the modes.

        A hard mask has greys at its edges afterwards: harden it again.
        """
        require_size(width, height)
        if (width, height) == self.size:
            return self
        if self.resampling == "nearest":
            values = self.tensor()
            if mode == "fill":
                values = fill_pixels(values, width, height)
            else:
                import torch  # takes a second, which an edit without a model need not spend

                values = torch.nn.functional.interpolate(values, size=(height, width))
            return replace(self, levels=values[0, 0].numpy())
        picture, filter_name = self.image(), self.resampling.removesuffix("-exact")
        if self.resampling == "nearest-exact":
            # As with the given mode, Pillow leaves the last strip of "fill" black.
            picture = picture.convert("P")
        picture = resize_picture(picture, width, height, mode, filter_name)
        return replace(self, levels=levels_of(picture.convert("L")))

    def touched(self, width: int, height: int) -> Mask:
        """Return a hard mask of another size: every pixel that this one reaches into, however little."""
        levels = self.inside
        for axis, length in enumerate((height, width)):
            edges = np.linspace(0, levels.shape[axis], length + 1)
            low, high = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
            counts = levels.cumsum(axis, dtype=np.int32)
            counts = np.concatenate([np.zeros_like(counts.take([0], axis)), counts], axis)
            levels = counts.take(high, axis) > counts.take(low, axis)
        return replace(self, levels=levels.astype(np.float32))

    def touching(self, stride: int) -> Mask:
        """Return the mask with every latent cell of `stride` pixels at its highest level.

        A model looks at one pixel of the mask in each cell; a corner of what is to go would be left over.
        """
        padded = self.padded(stride).levels
        rows, columns = padded.shape[0] // stride, padded.shape[1] // stride
        cells = padded.reshape(rows, stride, columns, stride).max(axis=(1, 3))
        levels = cells.repeat(stride, axis=0).repeat(stride, axis=1)
        return replace(self, levels=levels[: self.height, : self.width])

    def image(self) -> Image.Image:
        """Return the mask as a grey picture ("L"), white where it is repainted."""
        return Image.fromarray(cv2.convertScaleAbs(self.levels, alpha=255))

    def tensor(self) -> Tensor:
        """Return the levels as (1, 1, height, width)."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.levels))[None, None]

    def to_latents(self, height: int, width: int) -> Tensor:
        """Return the levels at the latents' size, (1, 1, height, width).

        By the nearest neighbour, as checkpoints were trained.
        """
        import torch

        return torch.nn.functional.interpolate(self.tensor(), size=(height, width))


def snapped(levels: np.ndarray) -> np.ndarray:
    """Return levels with nearly black and nearly white ones at 0 and 1."""
    levels = np.where(levels < NEARLY_BLACK, np.float32(0), levels)
    return np.where(levels > NEARLY_WHITE, np.float32(1), levels).astype(np.float32)


def distance(outside: np.ndarray) -> np.ndarray:
    """Return each pixel's exact distance, where `outside` is true, to the nearest one where it is not."""
    return cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def levels_of(grey: Image.Image) -> np.ndarray:
    """Return the levels of a grey picture ("L"), snapped."""
    table = snapped(np.arange(256, dtype=np.float32) / 255)
    return table[np.asarray(grey)]


def _bounds(levels: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(levels.max(axis=1)), np.flatnonzero(levels.max(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _widened(low: int, high: int, by: int, limit: int) -> tuple[int, int]:
    """Return an interval grown on both sides, shifted so that it stays within 0..limit."""
    length = high - low + by
    low = max(0, min(low - by // 2, limit - length))
    return low, min(low + length, limit)
