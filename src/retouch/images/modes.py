"""Pictures of any Pillow mode as plain 8-bit colour or grey, and the refusal of transparency.

No file is read here and nothing is resized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from retouch.errors import InputError


def require_picture(image: Any, parameter: str) -> Image.Image:
    """Return a Pillow picture with at least one pixel; refuse anything else."""
    if not isinstance(image, Image.Image):
        raise InputError(
            f"{parameter} is a {type(image).__name__}. A PIL.Image.Image is accepted here. "
            f"Load a file with retouch.utils.load_image, or wrap an array with PIL.Image.fromarray.",
            parameter=parameter,
        )
    if 0 in image.size:
        raise InputError(
            f"{parameter} is {image.width}x{image.height}, it has no pixels. At least 1x1 is accepted. "
            f"Check the crop or the file that it came from.",
            parameter=parameter,
        )
    return image


def is_transparent(image: Image.Image) -> bool:
    """Return True if any pixel is less than fully opaque.

    A colour key on "L" or "RGB" does not count: Pillow keeps it in `info` even after `convert("RGB")`, so a
    picture whose transparency was dropped on purpose would be refused again.
    """
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getbands()[-1]
    return alpha in ("A", "a") and int(np.asarray(image.getchannel(alpha)).min()) < 255


def is_deep(image: Image.Image) -> bool:
    """Return True if the picture has one channel of more than 8 bits, which Pillow's `convert` clips."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def deep_values(image: Image.Image, parameter: str = "image") -> np.ndarray:
    """Return a deep picture as floats from 0 to 1."""
    return np.asarray(image).astype(np.float64) / deep_white(image, parameter)


def deep_white(image: Image.Image, parameter: str = "image") -> float:
    """Return the value of white in a deep picture; values beyond it are refused.

    "I;16" is 16-bit. "I" and "F" say nothing about their scale, so the largest value decides: "I" up
    to 255 is 8-bit, else 16-bit; "F" up to 1 is a fraction, else 8-bit.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white = 1 if high <= 1 else 255
    else:
        white = 255 if image.mode == "I" and high <= 255 else 65535
    if not (low >= 0 and high <= white):  # also false for NaN
        raise InputError(
            f'{parameter} has mode "{image.mode}" and values from {low:g} to {high:g}. Accepted are '
            f"finite values from 0 to {white}. Scale the values, and pass them as an 8-bit picture (mode "
            "L).",
            parameter=parameter,
        )
    return white


def eight_bit(image: Image.Image, parameter: str = "image") -> Image.Image:
    """Return the picture in a mode that `convert("RGB")` and `convert("L")` take without loss or warning."""
    if is_deep(image):
        return Image.fromarray(np.rint(deep_values(image, parameter) * 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # Pillow warns of a conversion straight to RGB or L
    return image


def plain_rgb(image: Image.Image, parameter: str = "image") -> Image.Image:
    """Return an opaque picture of any mode as RGB; a transparent one is refused."""
    require_picture(image, parameter)
    if is_transparent(image):
        raise InputError(
            f"{parameter} has an alpha channel that is not fully opaque (mode {image.mode}). Opaque "
            "pictures are accepted, since the model does not know transparency. Composite it on a "
            'background with PIL.Image.alpha_composite, or drop the alpha with image.convert("RGB").',
            parameter=parameter,
        )
    return image if image.mode == "RGB" else _converted(image, "RGB", parameter)


def luminance(mask: Image.Image, parameter: str = "mask_image") -> Image.Image:
    """Return the brightness of a mask of any mode as "L"; a partly transparent mask is refused."""
    refuse_transparent_mask(mask, parameter)
    return _converted(mask, "L", parameter)


def refuse_transparent_mask(mask: Image.Image, parameter: str = "mask_image") -> None:
    require_picture(mask, parameter)
    if is_transparent(mask):
        raise InputError(
            f"{parameter} has an alpha channel that is not fully opaque (mode {mask.mode}), so the "
            "mask could be its brightness or its alpha. A mask without transparency is "
            'accepted, where white means repaint. Pass mask.convert("RGBA").getchannel("A") for the '
            'alpha, or mask.convert("L") for the brightness.',
            parameter=parameter,
        )


def _converted(image: Image.Image, mode: str, parameter: str) -> Image.Image:
    try:
        return eight_bit(image, parameter).convert(mode)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{parameter} has mode "{image.mode}", which Pillow cannot turn into "{mode}". Accepted '
            "are 1, L, LA, P, RGB, RGBA, CMYK, YCbCr, HSV, I, I;16 and F. Convert the picture to RGB "
            "first.",
            parameter=parameter,
        ) from error
