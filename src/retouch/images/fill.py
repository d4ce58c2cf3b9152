"""Something in the hole before a model sees it: classical fills, which need no model.

A model that starts from the picture (strength below 1) takes up what it finds there, so what is under the
hole matters: the thing to be rid of should not be it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import cv2
import numpy as np

from retouch.errors import InputError
from retouch.images.interpolate import pull_push

Fill = Literal["original", "blur", "telea", "ns", "noise", "color"]

_REACH = 5  # pixels around the hole that OpenCV's methods look at


def fill_hole(
    pixels: np.ndarray, inside: np.ndarray, fill: Fill, *, seed: int = 0, color: Any = (127, 127, 127)
) -> np.ndarray:
    """`pixels` (height, width, 3) of 8 bits with the hole filled; all else as it was.

    "blur" continues the surroundings smoothly, "telea" and "ns" (Navier-Stokes) carry lines on, "noise" has
    the surroundings' colours at random, "color" is one colour, "original" leaves what is there.
    """
    if fill not in get_args(Fill):
        raise InputError(f"fill={fill!r} is unknown. Accepted are {', '.join(get_args(Fill))}.")
    if fill == "original" or not inside.any():
        return pixels.copy()
    if inside.all() and fill not in ("noise", "color"):
        raise InputError(
            f"fill={fill!r} continues the surroundings, but the hole leaves none. Use fill='noise' or "
            "fill='color'."
        )
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
