"""Control pictures that need no weights: edges, scribbles, a coarse copy, and the inpaint condition.

Each function takes a picture and returns one of the same size. Depth, poses and the like come from models
that are not part of this library; their pictures are used unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from retouch.errors import InputError
from retouch.images.modes import plain_rgb

if TYPE_CHECKING:
    from torch import Tensor


def make_inpaint_condition(image: Image.Image, mask: Image.Image) -> Tensor:
    """Return the picture as (1, 3, height, width) values from 0 to 1, with -1 where the mask is white."""
    import torch  # takes a second, which callers that only open pictures need not spend

    from retouch.images.mask_reading import read_masks

    picture, (read, *_) = plain_rgb(image), read_masks(mask)
    if picture.size != read.size:
        raise InputError(
            f"mask_image is {read.width}x{read.height} but image is {picture.width}x{picture.height}. They "
            "must match; resize the mask with mask.resize(image.size).",
            parameter="mask_image",
        )
    values = np.array(picture, np.float32) / 255
    values[read.hard] = -1
    return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()


def canny(image: Image.Image, low: float = 100, high: float = 200) -> Image.Image:
    """Return white edges on black. Steps over `high` begin an edge, and steps over `low` continue it."""
    import cv2  # takes a tenth of a second; only edges and scribbles need it

    if not 0 <= low <= high:
        raise InputError(
            f"low={low} and high={high} are no thresholds. Give 0 <= low <= high, such as 100, 200.",
            parameter="low",
        )
    edges = cv2.Canny(np.asarray(plain_rgb(image)), low, high)
    return Image.fromarray(edges).convert("RGB")


def scribble(image: Image.Image, threshold: float = 32) -> Image.Image:
    """Return white strokes on black, like a quick drawing; a higher threshold leaves fewer strokes.

    Strokes are drawn where the picture is darker than its surroundings ("XDoG: An eXtended
    difference-of-Gaussians compendium").
    """
    import cv2

    if not threshold > 0:
        raise InputError(
            f"threshold={threshold} is not above 0. Give 32, say; fewer strokes pass a higher one.",
            parameter="threshold",
        )
    values = np.asarray(plain_rgb(image), np.float32)
    fine, coarse = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.5, 5.0))
    darker = (coarse - fine).min(axis=2)
    return Image.fromarray(np.where(2 * darker > threshold, 255, 0).astype(np.uint8)).convert("RGB")


def tile(image: Image.Image, factor: float = 1) -> Image.Image:
    """Return the picture, or a coarse copy that leaves details of up to `factor` pixels to the model."""
    picture = plain_rgb(image)
    if not 1 <= factor <= max(picture.size):
        raise InputError(
            f"factor={factor} is not between 1 (the picture itself) and {max(picture.size)} (its side). "
            "Give 4 or 8, say.",
            parameter="factor",
        )
    width, height = (max(1, round(side / factor)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)
