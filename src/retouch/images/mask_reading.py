"""Reading masks, in whatever form people give them: a mask of a pipeline's call, or of an edit of a photo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from retouch.errors import InputError
from retouch.images.files import load_image
from retouch.images.mask import Mask, Resampling, levels_of, snapped
from retouch.images.modes import deep_values, eight_bit, is_deep, luminance, require_picture

MaskMode = Literal["auto", "luma", "alpha"]


def read_masks(value: Any, parameter: str = "mask_image") -> list[Mask]:
    """Read the masks of a pipeline call: PIL pictures, arrays, tensors, batches or lists of them.

    A picture counts by its luminance. Arrays are (h, w), (batch, h, w), (h, w, 1 or 3) or
    (batch, h, w, 1 or 3); tensors (h, w), (batch, h, w) or (batch, 1 or 3, h, w). Floats run from 0 to 1;
    integers from 0 to 255 (uint16 to 65535), except that an integer mask whose largest value is 1 holds
    0/1 flags.
    """
    if isinstance(value, Mask):
        return [value]
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(
                f"{parameter} is an empty list. One mask, or one for each picture, is accepted. Pass at "
                "least one.",
                parameter=parameter,
            )
        return [mask for item in value for mask in read_masks(item, parameter)]
    if isinstance(value, Image.Image):
        return [_of_picture(value, parameter)]
    from retouch.images.values import brightness  # brings torch, which a mask from a file does not need

    batch = brightness(value, parameter).detach().float().cpu()
    return [Mask(snapped(levels), "nearest") for levels in batch[:, 0].numpy()]


def read_photo_mask(
    value: Any,
    size: tuple[int, int],
    *,
    mask_mode: MaskMode = "auto",
    invert: bool = False,
    grow: float = 0,
    fit_mask: bool = False,
) -> Mask:
    """Read the mask of an edit of a photo of `size` (width, height).

    `value` is a picture or its path (white is repainted; with transparency, `mask_mode` must say whether
    the brightness or the alpha is meant), a boolean or 0..1 or 0..255 array, a box (left, top, right,
    bottom), a polygon [(x, y), ...], or a list of these. `grow` widens it by that many pixels, or shrinks
    it if negative. A mask that keeps or repaints everything is refused.
    """
    mask = _of_anything(value, size, mask_mode, fit_mask)
    if invert:
        mask = mask.inverted()
    if mask.is_empty:
        raise InputError(
            "The mask is empty: nothing in it is white, so there is nothing to repaint. White marks what "
            "to repaint; use invert=True if it marks what to keep.",
            parameter="mask",
        )
    if grow:
        mask = mask.grown(grow)
        if mask.is_empty:
            raise InputError(f"grow={grow} leaves nothing of the mask. Shrink it by less.", parameter="grow")
    if mask.is_full:
        raise InputError(
            "The mask is all white: nothing of the photo would be kept. Use invert=True if white marks "
            "what to keep, or image2image to change a whole picture.",
            parameter="mask",
        )
    return mask


def read_source(
    value: Any, size: tuple[int, int], *, mask_mode: MaskMode = "auto", fit_mask: bool = False
) -> np.ndarray:
    """Read which pixels of a photo may be copied, in any form of a mask: true where it is white."""
    try:
        usable = _of_anything(value, size, mask_mode, fit_mask).hard
    except InputError as error:
        raise InputError(f"source is read like a mask. {error}", parameter="source") from error
    if not usable.any():
        raise InputError(
            "source is empty: nothing in it is white, so nothing may be copied. Mark what may be copied, or "
            "leave source out to copy anything outside the hole.",
            parameter="source",
        )
    return usable


def _of_anything(value: Any, size: tuple[int, int], mode: MaskMode, fit: bool) -> Mask:
    if isinstance(value, np.ndarray | Mask) or _is_tensor(value):
        masks = read_masks(value, "mask")
        if len(masks) != 1 and not isinstance(value, Mask):
            raise InputError(
                f"The mask has the shape {tuple(value.shape)}, which is {len(masks)} masks. One for the "
                "photo is accepted, (height, width). Join them with numpy.maximum.reduce.",
                parameter="mask",
            )
        return _fitted(replace(masks[0], resampling="bilinear"), size, fit)
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(
                "The mask is an empty list. Give a box, a polygon, a picture or a list of these.",
                parameter="mask",
            )
        if _are_numbers(value):
            return _of_box(value, size)
        if all(isinstance(part, tuple | list) and len(part) == 2 and _are_numbers(part) for part in value):
            return _of_polygon(value, size)
        mask = _of_anything(value[0], size, mode, fit)
        for part in value[1:]:
            mask = mask.union(_of_anything(part, size, mode, fit))
        return mask
    try:
        picture = load_image(value, lambda opened: opened)
    except InputError as error:
        raise InputError(f"The mask cannot be used. {error}", parameter="mask") from error
    return _fitted(_of_channel(picture, mode), size, fit)


def _of_box(box: Sequence[Any], size: tuple[int, int]) -> Mask:
    width, height = size
    if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]) or not np.isfinite(box).all():
        raise InputError(
            f"The box {tuple(box)} is not (left, top, right, bottom) in pixels with left < right and top "
            f"< bottom. The photo is {width}x{height}.",
            parameter="mask",
        )
    if max(box) <= 1 and any(value % 1 for value in box):
        raise InputError(
            f"The box {tuple(box)} seems to be in fractions of the photo, which is {width}x{height}. "
            "Pixels are accepted. Multiply by its width and height.",
            parameter="mask",
        )
    left, top, right, bottom = (max(round(float(value)), 0) for value in box)
    levels = np.zeros((height, width), np.float32)
    levels[top:bottom, left:right] = 1
    return Mask(levels)


def _of_polygon(points: Sequence[Any], size: tuple[int, int]) -> Mask:
    if len(points) < 3 or not np.isfinite(points).all():
        raise InputError(
            f"The polygon has {len(points)} points, or one that is not finite. At least three (x, y) "
            f"pairs in pixels enclose something. The photo is {size[0]}x{size[1]}.",
            parameter="mask",
        )
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return Mask(levels_of(canvas))


def _of_picture(picture: Image.Image, parameter: str) -> Mask:
    resampling: Resampling = "nearest-exact" if picture.mode in ("1", "P") else "lanczos"
    if is_deep(require_picture(picture, parameter)):
        return Mask(snapped(deep_values(picture, parameter).astype(np.float32)), resampling)
    return Mask(levels_of(luminance(picture, parameter)), resampling)


def _of_channel(picture: Image.Image, mode: MaskMode) -> Mask:
    """Read the brightness or the alpha of a picture, whichever holds the mask."""
    picture = eight_bit(picture, "mask")
    has_alpha = picture.getbands()[-1] == "A"
    if not has_alpha and mode == "alpha":
        raise InputError(
            f"mask_mode='alpha' was asked for, but the mask (mode {picture.mode}) has no alpha channel. "
            "Use mask_mode='luma' for its brightness.",
            parameter="mask_mode",
        )
    if not has_alpha:
        return Mask(levels_of(luminance(picture, "mask")))
    luma, alpha = picture.convert("L"), picture.getchannel("A")
    (darkest, brightest), (clearest, densest) = luma.getextrema(), alpha.getextrema()
    if mode == "luma" or (mode == "auto" and clearest == 255):
        return Mask(levels_of(luma))
    if mode == "alpha" or (darkest == brightest and clearest != densest):
        return Mask(levels_of(alpha))
    raise InputError(
        "The mask has both a picture and an alpha channel that is not fully opaque, so it could mean "
        "either. Say which with mask_mode='luma' or mask_mode='alpha'.",
        parameter="mask_mode",
    )


def _fitted(mask: Mask, size: tuple[int, int], fit: bool) -> Mask:
    if mask.size == size:
        return mask
    if not fit:
        raise InputError(
            f"The mask is {mask.width}x{mask.height} but the photo is {size[0]}x{size[1]}. They must "
            "match; give fit_mask=True to stretch the mask over the photo, or make one of its size.",
            parameter="mask",
        )
    return mask.resized(*size)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | np.number) for value in values)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # if nothing has imported it, there are no tensors
    return torch is not None and isinstance(value, torch.Tensor)
