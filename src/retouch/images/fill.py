"""Classical fills: content for a hole before a model sees it, made without a model.

A model that starts from the picture (strength below 1) continues what it finds there. Whatever the edit is
meant to remove should not be in the hole then.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.interpolate import pull_push
from retouch.images.patch_fill import patch_fill

Fill = Literal["original", "patches", "blur", "telea", "ns", "noise", "color"]

_REACH = 5  # pixels around the hole that OpenCV's methods look at


def fill_hole(
    pixels: np.ndarray, inside: np.ndarray, fill: Fill, *, seed: int = 0, color: Any = (127, 127, 127)
) -> np.ndarray:
    """Return a copy of `pixels` ((height, width, 3) of 8 bits), filled where `inside` is true.

    "patches" continues textures and lines with patches of the picture, "blur" continues the surroundings
    smoothly, "telea" and "ns" (Navier-Stokes) continue lines, "noise" is random in the surroundings' colours,
    "color" is one colour, "original" changes nothing.
    """
    if fill == "original" or not inside.any():
        return pixels.copy()
    if inside.all() and fill not in ("noise", "color"):
        raise InputError(
            f"fill={fill!r} continues the surroundings, but the hole leaves none. Use fill='noise' or "
            "fill='color'.",
            parameter="fill",
        )
    if fill == "patches":
        return patch_fill(pixels, inside, seed=seed)
    if fill == "blur":
        values = pull_push(pixels, (~inside).astype(np.float32))
    elif fill == "noise":
        known = pixels[~inside] if not inside.all() else np.array([[0, 0, 0], [255, 255, 255]])
        draw = np.random.default_rng(seed)
        values = draw.normal(known.mean(axis=0), known.std(axis=0) + 1, pixels.shape)
    elif fill == "color":
        values = np.broadcast_to(np.asarray(color, np.float32), pixels.shape)
    else:
        method = cv2.INPAINT_TELEA if fill == "telea" else cv2.INPAINT_NS
        values = cv2.inpaint(np.ascontiguousarray(pixels), inside.astype(np.uint8), _REACH, method)
    filled = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.where(inside[..., None], filled, pixels)
