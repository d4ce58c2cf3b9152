"""A request's pictures and masks as tensors of one working size, and the way back.

Without `height` and `width` the working size is the picture's own, filled up to a multiple of the VAE's
factor by repeating the edge; the result is cut back. All refusals of pictures happen here.
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
from retouch.images.masks import harden, mask_values
from retouch.images.modes import luminance, plain_rgb
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import pad_mask, pad_pixels
from retouch.pipelines.request import Request

Box = tuple[int, int, int, int]

# Mask values this close to black or white are meant as such (JPEG masks are never quite black).
_NEARLY = 0.05


@dataclass(frozen=True)
class Pictures:
    """What the run works on. `pixels` is in [-1, 1]; `mask` in [0, 1] with 1 = repaint."""

    height: int
    width: int
    pixels: Tensor | None = None  # (pictures, 3, height, width)
    latents: Tensor | None = None  # (pictures, 4, height/8, width/8), when the caller gave latents
    mask: Tensor | None = None  # (masks, 1, height, width)
    cut: tuple[int, int] | None = None  # the picture's own size, where the working size is larger
    pastes: Sequence[tuple[Image.Image, Image.Image, Box]] = field(default=())  # original, mask, crop
    control: Sequence[Tensor] = field(default=())  # for each ControlNet (pictures, channels, height, width)

    @property
    def count(self) -> int:
        """How many different pictures or masks there are."""
        return max(
            [len(part) for part in (self.pixels, self.latents, self.mask) if part is not None], default=1
        )

    @property
    def batch(self) -> int:
        """How many different results they ask for."""
        return max([self.count, *map(len, self.control)])

    @property
    def hard_mask(self) -> Tensor:
        """The mask as a model's mask channel knows it."""
        assert self.mask is not None
        return (self.mask >= 0.5).to(self.mask.dtype)

    @property
    def soft_rows(self) -> Tensor:
        """For each mask, whether any part of it is neither kept nor repainted from the start."""
        assert self.mask is not None
        return ((self.mask > 0) & (self.mask < 1)).flatten(1).any(dim=1)

    @property
    def is_soft(self) -> bool:
        """Whether any mask is soft."""
        return self.mask is not None and bool(self.soft_rows.any())


def listed(value: Any) -> list[Any]:
    """The single pictures of an argument that may hold one or several."""
    if isinstance(value, list | tuple):
        return [part for entry in value for part in listed(entry)]
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 4:
        return list(value)
    return [value]


def size_of(picture: Any) -> tuple[int, int]:
    """Height and width; arrays have their channels last and tensors first."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    if isinstance(picture, Tensor):
        return int(picture.shape[-2]), int(picture.shape[-1])
    return int(picture.shape[0]), int(picture.shape[1])


def prepare(
    request: Request, processor: VaeImageProcessor, default_size: int, latent_channels: int
) -> Pictures:
    """Check the request's pictures and masks against each other and bring them to one working size."""
    factor = processor.config.vae_scale_factor
    if request.image is None:
        return Pictures(request.height or default_size, request.width or default_size)
    images = [_readable(image, latent_channels) for image in listed(request.image)]
    if not images:
        raise InputError("image is an empty list. Give at least one picture.")
    is_latent = _are_latents(images, latent_channels)
    scale = factor if is_latent else 1
    sizes = [(height * scale, width * scale) for height, width in map(size_of, images)]
    free_size = request.height is None and request.width is None
    masks = [] if request.mask_image is None else _masks(request.mask_image)
    if masks and len(images) > 1 and len(masks) not in (1, len(images)):
        raise InputError(
            f"{len(masks)} masks were given for {len(images)} pictures. Give one mask for all, or one for "
            "each."
        )
    if masks:
        check_fit(sizes, [tuple(mask_values(mask).shape[-2:]) for mask in masks], announce=free_size)
    if request.padding_mask_crop is not None:
        return _cropped(request, processor, images, masks, default_size)
    if len(set(sizes)) > 1 and (request.height is None or request.width is None):
        found = ", ".join(sorted(f"{width}x{height}" for height, width in set(sizes)))
        raise InputError(
            f"The pictures of one batch have different sizes ({found}). Resize them to one size, "
            "or call once for each; inpainting takes height and width for that."
        )
    own = sizes[0]
    height, width = (request.height or _filled(own[0], factor)), (request.width or _filled(own[1], factor))
    cut = own if free_size and own != (height, width) else None
    pixels = latents = mask = None
    if is_latent:
        latents = torch.stack([image.as_subclass(Tensor) for image in images])
        if (height, width) != own:
            raise InputError(
                f"image is given as latents of a {own[1]}x{own[0]} picture, but {width}x{height} was asked "
                "for. Latents cannot be resized; leave height and width out."
            )
    else:
        fit = VaeImageProcessor(vae_scale_factor=factor, do_resize=False) if cut else processor
        pixels = fit.preprocess(images, height=height, width=width)
        pixels = pad_pixels(pixels, factor).expand(-1, 3, -1, -1)
    if masks:
        target = own if free_size else (height, width)
        mask = torch.cat([_mask_tensor(mask, request, factor, target) for mask in masks])
    return Pictures(height, width, pixels, latents, mask, cut)


def _filled(size: int, factor: int) -> int:
    return -(-size // factor) * factor


def _readable(image: Any, latent_channels: int) -> Any:
    if isinstance(image, Image.Image):
        return plain_rgb(image, "image")
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] in (2, 4):
            raise InputError(
                f"image is an array of shape {image.shape}: it has an alpha channel, which a model cannot "
                "see. Put the picture on a background, or drop the channel with image[..., :3]."
            )
        return image
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, latent_channels):
            raise InputError(
                f"image is a tensor of shape {tuple(image.shape)}; it takes (3, height, width) pixels in "
                f"[0, 1] or ({latent_channels}, height/8, width/8) latents, with or without a batch in "
                "front."
            )
        if image.shape[0] == 4 and bool((image >= 0).all()) and 0 < float(image.detach().max()) <= 1:
            raise InputError(
                f"image is a tensor of shape {tuple(image.shape)} with values from 0 to 1 only: a picture "
                "with an alpha channel, which a model cannot see (latents have negative values, too). Drop "
                "the alpha with image[:3]."
            )
        return image
    raise InputError(
        f"image is a {type(image).__name__}; it takes PIL pictures, numpy arrays, tensors or lists of one of "
        f"these. Open a file or URL with retouch.utils.load_image first."
    )


def _are_latents(images: list[Any], latent_channels: int) -> bool:
    flags = {isinstance(image, Tensor) and image.shape[0] == latent_channels for image in images}
    if len(flags) > 1:
        raise InputError("Some of the pictures are latents and some are pixels; give one kind in a call.")
    return flags.pop()


def _masks(value: Any) -> list[Any]:
    """Single masks: PIL ones as they came, arrays and tensors as (1, 1, height, width) values."""
    masks = [
        part
        for mask in (value if isinstance(value, list | tuple) else [value])
        for part in ([mask] if isinstance(mask, Image.Image) else mask_values(mask).split(1))
    ]
    if not masks:
        raise InputError("mask_image is an empty list. Give one mask, or one for each picture.")
    return masks


def check_fit(
    sizes: Sequence[tuple[int, int]], mask_sizes: Sequence[tuple[int, ...]], *, announce: bool
) -> None:
    """Refuse masks of another shape than their pictures; one of the same shape is scaled, and said to be."""
    pairs = {(sizes[row % len(sizes)], mask) for row, mask in enumerate(mask_sizes)}
    pairs |= {(size, mask_sizes[row % len(mask_sizes)]) for row, size in enumerate(sizes)}
    for (height, width), (mask_height, mask_width) in pairs:
        if (height, width) == (mask_height, mask_width):
            continue
        given = f"mask_image is {mask_width}x{mask_height} but image is {width}x{height}."
        # The same shape up to a rounding of one pixel in the smaller of the two.
        if abs(mask_width * height - mask_height * width) > max(width, height, mask_width, mask_height):
            raise InputError(
                f"{given} A mask must have its picture's size, or at least its aspect; resize it with "
                f"mask.resize(image.size), or make one for this picture."
            )
        if announce:
            warnings.warn(
                f"{given} The mask was scaled to the picture. Give one of the same size for exact edges.",
                stacklevel=2,
            )


def _mask_tensor(mask: Any, request: Request, factor: int, target: tuple[int, int], **crop: Any) -> Tensor:
    """One mask at the target's size, filled up: soft only if it was given with greys and may stay so."""
    values = mask_values(mask)
    soft = request.mask_mode == "soft" and bool(((values > _NEARLY) & (values < 1 - _NEARLY)).any())
    if crop or tuple(values.shape[-2:]) != target:
        fit = VaeImageProcessor(
            vae_scale_factor=1, do_normalize=False, do_binarize=not soft, do_convert_grayscale=True
        )
        # In its own mode, as the reference: Pillow resizes a bilevel mask by the nearest neighbour.
        picture = mask if isinstance(mask, Image.Image) else values
        values = fit.preprocess(picture, height=target[0], width=target[1], **crop)
    values = pad_mask(values if soft else harden(values), factor)
    values = torch.where(values < _NEARLY, 0.0, torch.where(values > 1 - _NEARLY, 1.0, values))
    return values.float()


def _snapped(mask: Image.Image) -> Image.Image:
    """Nearly black and nearly white made so, lest a JPEG's speckles widen the crop to the whole picture."""
    if mask.mode in ("1", "P"):
        return mask
    if mask.mode not in ("L", "RGB"):
        mask = luminance(mask)
    levels = [
        0 if level < _NEARLY * 255 else 255 if level > (1 - _NEARLY) * 255 else level for level in range(256)
    ]
    return mask.point(levels * len(mask.getbands()))


def _cropped(
    request: Request, processor: VaeImageProcessor, images: list[Any], masks: list[Any], default_size: int
) -> Pictures:
    """The masked area of each picture with its margin, scaled up to the working size."""
    if not all(isinstance(part, Image.Image) for part in [*images, *masks]):
        raise InputError(
            "padding_mask_crop needs PIL pictures and masks, because it pastes into them. Convert arrays "
            "with PIL.Image.fromarray."
        )
    factor = processor.config.vae_scale_factor
    height, width = request.height or default_size, request.width or default_size
    count = max(len(images), len(masks))
    pixels, hole, pastes = [], [], []
    for row in range(count):
        image, mask = images[row % len(images)], _snapped(masks[row % len(masks)])
        if mask.size != image.size:
            mask = mask.resize(image.size)
        if luminance(mask).getbbox() is None:  # nothing to crop to; the run returns this picture as it is
            mask_box = (0, 0, *image.size)
        else:
            mask_box = processor.get_crop_region(mask, width, height, pad=request.padding_mask_crop or 0)
        crop: dict[str, Any] = {"resize_mode": "fill", "crops_coords": mask_box}
        pixels.append(processor.preprocess(image, height=height, width=width, **crop))
        hole.append(_mask_tensor(mask, request, factor, (height, width), **crop))
        pastes.append((image, mask, mask_box))
    return Pictures(height, width, torch.cat(pixels), None, torch.cat(hole), pastes=pastes)
