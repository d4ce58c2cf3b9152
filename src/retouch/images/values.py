"""Arrays and tensors of any dtype as checked fractions of white, 0 to 1.

Masks and pictures read shapes differently, so the callers check those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from retouch.errors import InputError

# ITU-R 601 in the 16-bit fractions that Pillow uses. Their sum is exactly 1, so white stays 1.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


def described(value: Any) -> str:
    """Return a value's description for messages: its type, or an array's dtype and shape."""
    if not isinstance(value, np.ndarray | Tensor):
        return f"of type {type(value).__name__}"
    kind = "a numpy array" if isinstance(value, np.ndarray) else "a tensor"
    return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"


def as_tensor(values: Any, parameter: str) -> Tensor:
    """Return a numpy array (copied) or a tensor as a tensor of at least one value."""
    if not isinstance(values, np.ndarray | Tensor):
        raise InputError(
            f"{parameter} is {described(values)}. Accepted are a PIL picture, a numpy array, a "
            "torch tensor, or a list of them. Load a file with retouch.utils.load_image.",
            parameter=parameter,
        )
    if 0 in values.shape or values.ndim not in (2, 3, 4):
        raise InputError(
            f"{parameter} has the shape {tuple(values.shape)}. Accepted are (height, width), with "
            "channels (last in numpy, first in torch), with a batch before them; no side of length 0. "
            "Reshape it.",
            parameter=parameter,
        )
    if isinstance(values, Tensor):
        return values
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise InputError(
            f"{parameter} is {described(values)}. Accepted are bool, integers and floats "
            "of up to 64 bits. Convert it with astype(numpy.float32).",
            parameter=parameter,
        )
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


def fractions(values: Tensor, parameter: str, *, flags: bool = False) -> Tensor:
    """Return integers as fractions of white (float32) and floats unchanged; NaN and infinity are refused.

    With `flags`, integers whose largest value is 1 are 0/1 flags. That fits masks, but not dark photos.
    """
    if values.is_complex():
        raise InputError(
            f"{parameter} is complex. Real numbers are accepted. Pass its real part or magnitude.",
            parameter=parameter,
        )
    if values.is_floating_point():
        if not bool(values.isfinite().all()):
            raise InputError(
                f"{parameter} contains NaN or infinite values. Finite numbers are accepted. Look for "
                "the division or the overflow that made them, or replace them with torch.nan_to_num.",
                parameter=parameter,
            )
        return values
    if values.dtype == torch.bool:
        return values.float()
    plain = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    numbers = values if values.dtype in plain else values.to(torch.int64)  # torch cannot compare uint16
    low, high = int(numbers.min()), int(numbers.max())
    white = 65535 if values.dtype == torch.uint16 else 255
    if flags and high <= 1:
        white = 1
    if low < 0 or high > white:
        raise InputError(
            f"{parameter} holds integers from {low} to {high}. Accepted are 0 to 255 (uint16: 0 to "
            "65535), or floats from 0 to 1. Scale the values to one of these.",
            parameter=parameter,
        )
    return numbers.float() / white


def require_range(values: Tensor, low: float, parameter: str) -> None:
    """Refuse values outside of low..1, with room for the rounding of a resize or of half precision."""
    smallest, largest, slack = float(values.min()), float(values.max()), 1e-3
    if smallest < low - slack or largest > 1 + slack:
        advice = "Divide them by 255" if smallest >= 0 and largest > 2 else "Scale or clamp them"
        raise InputError(
            f"{parameter} has values from {smallest:g} to {largest:g}. Floats from {low:g} to 1 are "
            f"accepted. {advice} before the call.",
            parameter=parameter,
        )


def one_batch(parts: list[Tensor], parameter: str) -> Tensor:
    """Join (batch, channels, height, width) tensors of one shape along the batch."""
    if not parts:
        raise InputError(
            f"{parameter} is an empty list. One picture or more is accepted. Pass at least one.",
            parameter=parameter,
        )
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise InputError(
            f"{parameter} holds pictures of different shapes (channels, height, width): {shapes}. All "
            "of one call must agree. Resize or convert them, or make one call for each.",
            parameter=parameter,
        )
    return torch.cat(parts)


def brightness(values: Any, parameter: str) -> Tensor:
    """Return the brightness of a mask's array or tensor: (batch, 1, height, width), 0 to 1."""
    tensor = as_tensor(values, parameter)
    channels_last = isinstance(values, np.ndarray) and (values.ndim == 4 or values.shape[-1] in (1, 3, 4))
    if channels_last and values.ndim > 2:
        tensor = tensor.reshape(-1, *tensor.shape[-3:]).movedim(-1, 1)
    elif tensor.ndim < 4:
        tensor = tensor.reshape(-1, 1, *tensor.shape[-2:])
    if tensor.shape[1] not in (1, 3):
        raise InputError(
            f"{parameter} has {tensor.shape[1]} channels (shape {tuple(values.shape)}). 1 is accepted, or 3, "
            "whose brightness is taken. Pass one channel, for example the alpha alone if that is meant.",
            parameter=parameter,
        )
    levels = fractions(tensor, parameter, flags=True)
    require_range(levels, 0, parameter)
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
