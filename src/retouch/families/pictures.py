"""A call's pictures and masks, checked against each other and brought to one working size, and the way back.

Without `height` and `width` the working size is the picture's own, filled up to a multiple of the family's
stride by repeating the edge; the result is cut back. This is the only place that checks pictures.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import InputError
from retouch.families.call import Call
from retouch.families.latents import LatentLayout
from retouch.images.mask import Box, Mask
from retouch.images.mask_reading import read_masks
from retouch.images.modes import plain_rgb
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import pad_pixels


@dataclass(frozen=True)
class Pictures:
    """The pixels and masks that a run works on. `pixels` is in [-1, 1]; masks have the working size."""

    height: int
    width: int
    pixels: Tensor | None = None  # (pictures, 3, height, width)
    latents: Tensor | None = None  # (pictures, channels, height/stride, width/stride), if they were given
    masks: Sequence[Mask] = ()  # one for all pictures, or one for each
    cut: tuple[int, int] | None = None  # the picture's own size, if the working size is larger
    pastes: Sequence[tuple[Image.Image, Mask, Box]] = field(default=())  # original, mask, crop
    control: Sequence[Tensor] = field(default=())  # for each ControlNet (pictures, channels, height, width)

    @property
    def count(self) -> int:
        """The number of different pictures or masks."""
        return max([1, *(len(part) for part in (self.pixels, self.latents, self.masks) if part is not None)])

    @property
    def batch(self) -> int:
        """The number of different results that they ask for."""
        return max([self.count, *map(len, self.control)])

    @property
    def hard_masks(self) -> Sequence[Mask]:
        """The masks for a model's mask channel: 0 or 1."""
        return [mask.hardened() for mask in self.masks]

    @property
    def is_soft(self) -> bool:
        """True if any mask has greys."""
        return any(mask.is_soft for mask in self.masks)


def arrange(call: Call, processor: VaeImageProcessor, layout: LatentLayout, default_size: int) -> Pictures:
    """Check a call's pictures and masks against each other and bring them to one working size."""
    if call.image is None:
        return Pictures(call.height or default_size, call.width or default_size)
    images = [_readable(image, layout) for image in as_list(call.image)]
    if not images:
        raise InputError("image is an empty list. Give at least one picture.", parameter="image")
    is_latent = _are_latents(images, layout.channels)
    scale = layout.stride if is_latent else 1
    sizes = [(height * scale, width * scale) for height, width in map(size_of, images)]
    free_size = call.height is None and call.width is None
    masks = [] if call.mask_image is None else read_masks(call.mask_image)
    if masks and len(images) > 1 and len(masks) not in (1, len(images)):
        raise InputError(
            f"{len(masks)} masks were given for {len(images)} pictures. Give one mask for all, or one for "
            f"each.",
            parameter="mask_image",
        )
    if masks:
        _check_fit(sizes, [(mask.height, mask.width) for mask in masks], warn=free_size)
    if call.padding_mask_crop is not None:
        return _cropped(call, processor, layout, images, masks, default_size)
    if len(set(sizes)) > 1 and (call.height is None or call.width is None):
        found = ", ".join(sorted(f"{width}x{height}" for height, width in set(sizes)))
        raise InputError(
            f"The pictures of one batch have different sizes ({found}). Resize them to one size, make one "
            "call for each, or give height and width.",
            parameter="image",
        )
    own = sizes[0]
    height, width = (
        wanted or filled
        for wanted, filled in zip((call.height, call.width), layout.filled_up(*own), strict=True)
    )
    cut = own if free_size and own != (height, width) else None
    pixels = latents = None
    if is_latent:
        latents = torch.stack([image.as_subclass(Tensor) for image in images])
        if (height, width) != own:
            raise InputError(
                f"image holds latents of a {own[1]}x{own[0]} picture, but {width}x{height} was asked for. "
                "Latents cannot be resized; leave out height and width.",
                parameter="image",
            )
    else:
        fit = VaeImageProcessor(vae_scale_factor=layout.multiple, do_resize=False) if cut else processor
        pixels = fit.preprocess(images, height=height, width=width)
        pixels = pad_pixels(pixels, layout.multiple).expand(-1, 3, -1, -1)
    target = own if free_size else (height, width)
    masks = [_at_size(mask, call, layout, target) for mask in masks]
    return Pictures(height, width, pixels, latents, masks, cut)


def as_list(value: Any) -> list[Any]:
    """Return the single pictures of an argument that may hold one or several."""
    if isinstance(value, list | tuple):
        return [part for entry in value for part in as_list(entry)]
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 4:
        return list(value)
    return [value]


def size_of(picture: Any) -> tuple[int, int]:
    """Return height and width; arrays have their channels last and tensors first."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    if isinstance(picture, Tensor):
        return int(picture.shape[-2]), int(picture.shape[-1])
    return int(picture.shape[0]), int(picture.shape[1])


def _readable(image: Any, layout: LatentLayout) -> Any:
    """Return a picture that the processor reads; refuse transparency and unknown forms."""
    if isinstance(image, Image.Image):
        return plain_rgb(image, "image")
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] in (2, 4):
            raise InputError(
                f"image is an array of shape {image.shape}: it has an alpha channel, which a model cannot "
                "use. Put the picture on a background, or drop the channel with image[..., :3].",
                parameter="image",
            )
        return image
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, layout.channels):
            raise InputError(
                f"image is a tensor of shape {tuple(image.shape)}. Accepted are (3, height, width) pixels in "
                f"[0, 1] or ({layout.channels}, height/{layout.stride}, width/{layout.stride}) latents, with "
                "or without a batch in front.",
                parameter="image",
            )
        if image.shape[0] == 4 and bool((image >= 0).all()) and 0 < float(image.detach().max()) <= 1:
            raise InputError(
                f"image is a tensor of shape {tuple(image.shape)} with values from 0 to 1 only: a picture "
                "with an alpha channel, which a model cannot use (latents have negative values too). Drop "
                "the alpha with image[:3].",
                parameter="image",
            )
        return image
    raise InputError(
        f"image is a {type(image).__name__}. Accepted are PIL pictures, numpy arrays, tensors or lists of "
        "one of these. Open a file or URL with retouch.utils.load_image first.",
        parameter="image",
    )


def _are_latents(images: list[Any], latent_channels: int) -> bool:
    flags = {isinstance(image, Tensor) and image.shape[0] == latent_channels for image in images}
    if len(flags) > 1:
        raise InputError(
            "Some of the pictures are latents and some are pixels. Give one kind in a call.",
            parameter="image",
        )
    return flags.pop()


def _check_fit(
    sizes: Sequence[tuple[int, int]], mask_sizes: Sequence[tuple[int, int]], *, warn: bool
) -> None:
    """Refuse masks of another shape than their pictures; warn of one that is scaled."""
    pairs = {(sizes[row % len(sizes)], mask) for row, mask in enumerate(mask_sizes)}
    pairs |= {(size, mask_sizes[row % len(mask_sizes)]) for row, size in enumerate(sizes)}
    for (height, width), (mask_height, mask_width) in pairs:
        if (height, width) == (mask_height, mask_width):
            continue
        given = f"mask_image is {mask_width}x{mask_height} but image is {width}x{height}."
        # The same shape up to a rounding of one pixel in the smaller of the two.
        if abs(mask_width * height - mask_height * width) > max(width, height, mask_width, mask_height):
            raise InputError(
                f"{given} A mask must have its picture's size, or at least its aspect. Resize it with "
                "mask.resize(image.size), or make one for this picture.",
                parameter="mask_image",
            )
        if warn:
            warnings.warn(
                f"{given} The mask was scaled to the picture. Give one of the same size for exact edges.",
                stacklevel=2,
            )


def _at_size(
    mask: Mask, call: Call, layout: LatentLayout, size: tuple[int, int], crop: Box | None = None
) -> Mask:
    """Return a mask at the working size: soft only if it was given with greys and may stay so."""
    is_soft = call.mask_mode == "soft" and mask.is_soft
    height, width = size
    mask = mask.resized(width, height) if crop is None else mask.cropped(crop).resized(width, height, "fill")
    return (mask if is_soft else mask.hardened()).padded(layout.multiple)


def _cropped(
    call: Call,
    processor: VaeImageProcessor,
    layout: LatentLayout,
    images: list[Any],
    masks: list[Mask],
    default_size: int,
) -> Pictures:
    """Return the masked area of each picture with its margin, scaled up to the working size."""
    given = [*images, *as_list(call.mask_image)]
    if not all(isinstance(part, Image.Image | Mask) for part in given):
        raise InputError(
            "padding_mask_crop needs PIL pictures and masks, because it pastes into them. Convert arrays "
            "with PIL.Image.fromarray.",
            parameter="padding_mask_crop",
        )
    height, width = call.height or default_size, call.width or default_size
    pixels, repaint, pastes = [], [], []
    for row in range(max(len(images), len(masks))):
        image, mask = images[row % len(images)], masks[row % len(masks)]
        if mask.size != image.size:
            resized = mask.resized(*image.size)
            mask = resized if mask.is_soft else resized.hardened()
        if mask.is_empty:  # the run returns this picture unchanged
            box = (0, 0, *image.size)
        else:
            box = mask.crop_region(width, height, pad=call.padding_mask_crop or 0)
        pixels.append(
            processor.preprocess(image, height=height, width=width, resize_mode="fill", crops_coords=box)
        )
        repaint.append(_at_size(mask, call, layout, (height, width), box))
        pastes.append((image, mask, box))
    return Pictures(height, width, torch.cat(pixels), None, repaint, pastes=pastes)
