"""Laying the painted thing, and nothing else that was painted, on a fill by patches of the photo.

The fill is made at the photo's resolution, so around the thing the hole is as sharp as the photo.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from retouch.errors import InputError
from retouch.images.mask import Box, Mask, distance
from retouch.images.matte import find_matte, lay, refine_matte
from retouch.images.patch_fill import patch_fill, with_surroundings
from retouch.images.photo import Photo

_MIXED = 1.3  # pixels of a painting at a thing's edge that have colours of its surroundings too


@dataclass(frozen=True)
class Grounds:
    """Parts of a photo without what the mask covers, filled with patches; each is made once.

    The patches do not depend on the seed of an edit, so all its variations share them.
    """

    photo: Photo
    mask: Mask
    _filled: dict[Box, np.ndarray | None] = field(default_factory=dict)

    def of(self, box: Box) -> np.ndarray | None:
        """Return the pixels of a box, (height, width, 3) of 8 bits; None if there is nothing to copy."""
        if box not in self._filled:
            try:
                self._filled[box] = self._fill(box)
            except InputError:
                self._filled[box] = None
        return self._filled[box]

    def _fill(self, box: Box) -> np.ndarray:
        seen = self._seen(box)
        masked = self.mask.cropped(seen).inside
        part = (
            slice(box[1] - seen[1], box[3] - seen[1]),
            slice(box[0] - seen[0], box[2] - seen[0]),
        )
        hole = np.zeros_like(masked)  # of this box alone; others are filled on their turn
        hole[part] = masked[part]
        filled = patch_fill(self.photo.pixels(seen), hole, source=~masked, is_window=True)
        return filled[part].copy()

    def _seen(self, box: Box) -> Box:
        """Return the box with the surroundings of its hole."""
        left, top, right, bottom = self.mask.cropped(box).box
        hole = left + box[0], top + box[1], right + box[0], bottom + box[1]
        seen = with_surroundings(hole, self.photo.size)
        return (
            min(box[0], seen[0]),
            min(box[1], seen[1]),
            max(box[2], seen[2]),
            max(box[3], seen[3]),
        )


def laid(
    joined: np.ndarray,
    picture: Image.Image,
    without: np.ndarray,
    box: Box,
    grounds: Grounds,
    feather: float,
) -> np.ndarray | None:
    """Return the box of the photo with the painted thing on its ground; None without a thing or a ground.

    `picture` is the box as it was painted for the prompt, and `without` for none, at the size that both were
    painted at; `joined` is the painting at the photo's resolution, joined to it.
    """
    mask = grounds.mask.cropped(box)
    height, width = without.shape[:2]
    painted = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    matte = find_matte(painted, without, mask.touched(width, height).inside)
    ground = grounds.of(box) if matte.any() else None
    if ground is None:
        return None
    # A thing that is cut off by the hole's edge fades there, inside the hole.
    fading = np.clip(distance(mask.inside) / (feather + 1), 0, 1)
    matte = refine_matte(matte, painted, joined)
    scale = max(mask.size) / max(width, height)
    result = lay(ground, joined, matte, ~mask.inside, mixed=_MIXED * scale, fading=fading)
    levels = mask.levels[..., None]
    blended = np.rint(levels * result + (1 - levels) * grounds.photo.pixels(box))
    return blended.astype(np.uint8)
