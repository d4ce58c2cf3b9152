"""Masks: their values from whatever they are given as, and what is computed from them.

White (1) means repaint and black (0) means keep, here and everywhere inside. Nothing is resized.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from retouch.errors import InputError
from retouch.images.modes import deep_values, eight_bit, is_deep, luminance, require_picture
from retouch.images.values import as_tensor, fractions, one_batch, require_range

# ITU-R 601 in the 16-bit fractions that Pillow uses. Their sum is exactly 1, so white stays 1.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


def mask_values(mask: Any, argument_name: str = "mask_image") -> Tensor:
    """How much to repaint, 0 to 1, as (batch, 1, height, width).

    A picture counts by its luminance. Arrays are (h, w), (batch, h, w), (h, w, 1 or 3) or
    (batch, h, w, 1 or 3); tensors (h, w), (batch, h, w) or (batch, 1 or 3, h, w); or a list of any
    of these. Floats run from 0 to 1 and keep their dtype; integers run from 0 to 255 (uint16 to
    65535), except that an integer mask whose largest value is 1 holds 0/1 flags.
    """
    if isinstance(mask, list | tuple):
        return one_batch([mask_values(item, argument_name) for item in mask], argument_name)
    if isinstance(mask, Image.Image):
        if is_deep(mask):
            levels = deep_values(require_picture(mask, argument_name), argument_name)
        else:
            levels = np.asarray(luminance(mask, argument_name), np.float32) / 255
        return torch.from_numpy(levels.astype(np.float32))[None, None]
    values = fractions(_channels_first(mask, argument_name), argument_name, flags=True)
    require_range(values, 0, argument_name)
    if values.shape[1] == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _channels_first(mask: Any, argument_name: str) -> Tensor:
    """An array or tensor as (batch, 1 or 3, height, width)."""
    values = as_tensor(mask, argument_name)
    channels_last = isinstance(mask, np.ndarray) and (mask.ndim == 4 or mask.shape[-1] in (1, 3, 4))
    if channels_last and mask.ndim > 2:
        values = values.reshape(-1, *values.shape[-3:]).movedim(-1, 1)
    elif values.ndim < 4:
        values = values.reshape(-1, 1, *values.shape[-2:])
    if values.shape[1] not in (1, 3):
        raise InputError(
            f"{argument_name} has {values.shape[1]} channels (shape {tuple(mask.shape)}). 1 is accepted, "
            "or 3, of which the brightness is taken. Pass one channel, for example the alpha alone if "
            "that is meant."
        )
    return values


def harden(values: Tensor) -> Tensor:
    """0 or 1, in the same dtype: what is at least half white is repainted."""
    return (values >= 0.5).to(values.dtype)


def is_empty(values: Tensor) -> bool:
    """Whether there is nothing to repaint."""
    return not bool((values > 0).any())


def blur(mask: Image.Image, radius: float = 4) -> Image.Image:
    """Gaussian blur, which makes a hard mask soft; `radius` is its standard deviation in pixels."""
    require_picture(mask, "image")
    if not (math.isfinite(radius) and radius >= 0):
        raise InputError(
            f"blur_factor is {radius}. A number of pixels from 0 (no blur) up is accepted. Pass 4, say."
        )
    if mask.mode == "1" or is_deep(mask):
        mask = eight_bit(mask).convert("L")
    elif mask.mode == "P":
        mask = eight_bit(mask).convert("RGB")
    return mask.filter(ImageFilter.GaussianBlur(radius))


def crop_region(mask: Image.Image, width: int, height: int, pad: int = 0) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around all that is not black, `pad` pixels wider, in the
    aspect of width x height as far as the mask's own borders allow.
    """
    require_picture(mask, "mask_image")
    if width < 1 or height < 1 or pad < 0:
        raise InputError(
            f"width, height and pad are {width}, {height} and {pad}. A size of at least 1x1 and a pad of "
            "at least 0 are accepted. Pass the size that the crop will be processed at."
        )
    box = eight_bit(mask, "mask_image").convert("L").getbbox()
    if box is None:
        raise InputError(
            "mask_image is entirely black, so there is no region to crop. A mask with some white is "
            "accepted, where white means repaint. If black was meant as the hole, invert it with "
            "PIL.ImageOps.invert."
        )
    left, top = max(box[0] - pad, 0), max(box[1] - pad, 0)
    right, bottom = min(box[2] + pad, mask.width), min(box[3] + pad, mask.height)
    aspect = width / height
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widen(top, bottom, int((right - left) / aspect - (bottom - top)), mask.height)
    else:
        left, right = _widen(left, right, int((bottom - top) * aspect - (right - left)), mask.width)
    return left, top, right, bottom


def _widen(low: int, high: int, by: int, limit: int) -> tuple[int, int]:
    """Grow an interval on both sides, shifted so that it stays within 0..limit."""
    length = high - low + by
    low = max(0, min(low - by // 2, limit - length))
    return low, min(low + length, limit)
