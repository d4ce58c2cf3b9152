"""`VaeImageProcessor`: the class of `image_processor` and `mask_processor`, as in diffusers.

It converts pictures, arrays and tensors to a VAE's input, and its output back. It holds settings and no state
of a request; the arithmetic of masks, sizes and overlays is in the files beside it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from retouch.checkpoints.config import Config
from retouch.errors import InputError, NumericsError
from retouch.images.mask import HALF, Box, Mask
from retouch.images.modes import eight_bit, is_deep, plain_rgb, refuse_transparent_mask, require_picture
from retouch.images.overlay import apply_overlay
from retouch.images.sizes import RESAMPLING, require_size, resize_picture
from retouch.images.values import as_tensor, brightness, described, fractions, one_batch, require_range

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class ProcessorConfig(Config):
    do_resize: bool
    vae_scale_factor: int
    vae_latent_channels: int
    resample: str
    reducing_gap: float | None
    do_normalize: bool
    do_binarize: bool
    do_convert_rgb: bool
    do_convert_grayscale: bool


class VaeImageProcessor:
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: float | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ):
        if do_convert_rgb and do_convert_grayscale:
            raise InputError(
                "do_convert_rgb and do_convert_grayscale are both True. At most one of them is accepted. "
                "Leave out the one that you do not want.",
                parameter="do_convert_rgb",
            )
        if resample not in RESAMPLING:
            raise InputError(
                f"resample is {resample!r}. Accepted are {', '.join(RESAMPLING)}. Choose one of them; "
                f'"lanczos" is the default.',
                parameter="resample",
            )
        self.config = ProcessorConfig(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            vae_latent_channels=vae_latent_channels,
            resample=resample,
            reducing_gap=reducing_gap,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_rgb=do_convert_rgb,
            do_convert_grayscale=do_convert_grayscale,
        )

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> Tensor:
        """Return (batch, channels, height, width), -1 to 1 if `do_normalize`, else in the given range.

        Arrays and tensors hold 0 to 1; a tensor with as many channels as the latents have counts as
        latents and is returned unchanged.
        """
        items = list(image) if isinstance(image, list | tuple) else [image]
        name = "mask_image" if self.config.do_binarize or self.config.do_convert_grayscale else "image"
        pictures = [isinstance(item, Image.Image) for item in items]
        if any(pictures) and not all(pictures):
            raise InputError(
                f"{name} is a list of pictures and arrays mixed. A list of one kind is accepted. "
                f"Convert the arrays with PIL.Image.fromarray.",
                parameter=name,
            )
        if items and pictures[0]:
            pixels = self._from_pictures(items, height, width, resize_mode, crops_coords, name)
        elif resize_mode != "default" or crops_coords is not None:
            raise InputError(
                f"resize_mode={resize_mode!r} or crops_coords was given with an array or tensor. Both are "
                "accepted with PIL pictures only. Pass pictures, or resize and crop the array before the "
                "call.",
                parameter="resize_mode",
            )
        else:
            pixels = self._from_arrays(items, name)
            if not self.config.do_convert_grayscale and pixels.shape[1] == self.config.vae_latent_channels:
                return pixels
            if self.config.do_resize:
                pixels = self.resize(pixels, *self.get_default_height_width(pixels, height, width))
        require_range(pixels, 0 if self.config.do_binarize else -1, name)
        if self.config.do_normalize and bool((pixels < 0).any()):
            warnings.warn(
                f"{name} has values from {float(pixels.min()):g} to {float(pixels.max()):g}, so it is "
                "taken as already normalised. Arrays and tensors are expected in 0 to 1. Pass image / 2 + "
                "0.5 to silence this.",
                stacklevel=2,
            )
        elif self.config.do_normalize:
            pixels = self.normalize(pixels)
        return self.binarize(pixels) if self.config.do_binarize else pixels

    def _from_pictures(
        self,
        pictures: list[Image.Image],
        height: int | None,
        width: int | None,
        resize_mode: str,
        crop: Box | None,
        name: str,
    ) -> Tensor:
        pictures = [self._readable(picture, name) for picture in pictures]
        if crop is not None:
            if crop[2] <= crop[0] or crop[3] <= crop[1]:
                raise InputError(
                    f"crops_coords is {tuple(crop)}. A box (left, top, right, bottom) of at least one "
                    "pixel is accepted. Check the order of the numbers.",
                    parameter="crops_coords",
                )
            pictures = [picture.crop(crop) for picture in pictures]
        if self.config.do_resize:
            size = self.get_default_height_width(pictures[0], height, width)
            pictures = [self.resize(picture, *size, resize_mode=resize_mode) for picture in pictures]
        if self.config.do_convert_rgb:
            pictures = [self.convert_to_rgb(picture) for picture in pictures]
        elif self.config.do_convert_grayscale:
            pictures = [self.convert_to_grayscale(picture) for picture in pictures]
        return one_batch([self.numpy_to_pt(self.pil_to_numpy(picture)) for picture in pictures], name)

    def _readable(self, picture: Image.Image, name: str) -> Image.Image:
        """Return a picture in a mode that converts without clipping; ambiguous transparency is refused."""
        require_picture(picture, name)
        if is_deep(picture):
            picture = eight_bit(picture, name)
        if self.config.do_convert_rgb:
            return picture
        if self.config.do_convert_grayscale:
            refuse_transparent_mask(picture, name)
            return picture
        return picture if picture.mode == "L" else plain_rgb(picture, name)

    def _from_arrays(self, items: list[Any], name: str) -> Tensor:
        if self.config.do_convert_grayscale:
            return one_batch([brightness(item, name) for item in items], name)
        parts = []
        for item in items:
            values = as_tensor(item, name)
            accepted = [1, 3]
            if isinstance(item, np.ndarray):
                values = values[..., None] if values.ndim == 2 else values
                values = values.movedim(-1, -3)
            else:
                values = values[None] if values.ndim == 2 else values
                accepted.append(self.config.vae_latent_channels)
            if values.shape[-3] not in accepted:
                raise InputError(
                    f"{name} has the shape {tuple(item.shape)}, which means {values.shape[-3]} channels. "
                    f"Accepted are {', '.join(map(str, accepted))} channels (last in numpy, before height "
                    "and width in torch). Drop an alpha channel, or move the channels with numpy.moveaxis "
                    "or torch.movedim.",
                    parameter=name,
                )
            parts.append(fractions(values.reshape(-1, *values.shape[-3:]), name))
        return one_batch(parts, name)

    def postprocess(
        self, image: Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Return decoded pixels as "pil" pictures, "np" or "pt" values from 0 to 1, or "latent" unchanged."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(
                f"output_type is {output_type!r}. Accepted are {', '.join(OUTPUT_TYPES)}. Choose one.",
                parameter="output_type",
            )
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise InputError(
                f"image is {described(image)}. A tensor (batch, channels, height, width) is accepted. Add "
                "the dimensions that are missing, or convert it with torch.from_numpy.",
                parameter="image",
            )
        if output_type == "latent":
            return image
        if not bool(image.isfinite().all()):
            raise NumericsError(
                "The decoded pixels contain NaN or infinite values. Finite ones are needed. Load the "
                "pipeline, or its VAE alone, in float32 or bfloat16."
            )
        pixels = self._denormalized(image, do_denormalize)
        if output_type == "pt":
            return pixels
        array = self.pt_to_numpy(pixels)
        return array if output_type == "np" else self.numpy_to_pil(array)

    def _denormalized(self, image: Tensor, rows: list[bool] | None) -> Tensor:
        if rows is None:
            return self.denormalize(image) if self.config.do_normalize else image
        if len(rows) != len(image):
            raise InputError(
                f"do_denormalize has {len(rows)} entries but there are {len(image)} images. One for each "
                "image is accepted. Pass None to treat all alike.",
                parameter="do_denormalize",
            )
        chosen = torch.tensor(rows, dtype=torch.bool, device=image.device)
        return torch.where(chosen[:, None, None, None], self.denormalize(image), image)

    def get_default_height_width(
        self, image: Image.Image | np.ndarray | Tensor, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Return the given size, or else the image's own, rounded down to multiples of the VAE's factor."""
        if isinstance(image, Image.Image):
            own = image.height, image.width
        else:
            own = tuple(image.shape[2:4] if isinstance(image, Tensor) else image.shape[1:3])
        factor = self.config.vae_scale_factor
        height, width = own[0] if height is None else height, own[1] if width is None else width
        return height - height % factor, width - width % factor

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """Resize a picture with the configured filter, or an array or tensor by the nearest neighbour.

        Tensors are (batch, channels, height, width), arrays (batch, height, width, channels); both are
        stretched.
        """
        if isinstance(image, Image.Image):
            return resize_picture(
                image, width, height, resize_mode, self.config.resample, self.config.reducing_gap
            )
        if resize_mode != "default":
            raise InputError(
                f"resize_mode is {resize_mode!r} but the image is an array. Arrays are only stretched "
                f'("default"). Pass a PIL picture.',
                parameter="resize_mode",
            )
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(self.resize(self.numpy_to_pt(image), height, width))
        require_size(width, height)
        return torch.nn.functional.interpolate(image, size=(height, width))

    def apply_overlay(
        self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """Return `init_image` where the mask is black and `image` where it is white."""
        return apply_overlay(mask, init_image, image, crop_coords, self.config.resample)

    @staticmethod
    def blur(image: Image.Image, blur_factor: float = 4) -> Image.Image:
        """Blur a mask, which makes it soft; `blur_factor` is the Gaussian's standard deviation in pixels."""
        require_picture(image, "image")
        if not (math.isfinite(blur_factor) and blur_factor >= 0):
            raise InputError(
                f"blur_factor is {blur_factor}. A number of pixels from 0 (no blur) up is accepted. Pass 4, "
                "for example.",
                parameter="blur_factor",
            )
        if image.mode == "1" or is_deep(image):
            image = eight_bit(image).convert("L")
        elif image.mode == "P":
            image = eight_bit(image).convert("RGB")
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> Box:
        """Return the box around all that is not black, in the aspect of width x height if there is room."""
        grey = eight_bit(require_picture(mask_image, "mask_image"), "mask_image").convert("L")
        return Mask(np.asarray(grey, np.float32) / 255).crop_region(width, height, pad)

    @staticmethod
    def binarize(image: ArrayT) -> ArrayT:
        """Return 0 below 0.5 and 1 from there; the input stays unchanged."""
        hard = image >= HALF
        return hard.to(image.dtype) if isinstance(image, Tensor) else hard.astype(image.dtype)

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        return eight_bit(require_picture(image, "image")).convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        return eight_bit(require_picture(image, "image")).convert("L")

    @staticmethod
    def normalize(images: ArrayT) -> ArrayT:
        """Map 0..1 to -1..1."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: ArrayT) -> ArrayT:
        """Map -1..1 to 0..1, clamped."""
        return (images * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> np.ndarray:
        """Return (batch, height, width[, channels]), the 8-bit values divided by 255."""
        pictures = images if isinstance(images, list) else [images]
        return np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """Return floats 0..1 of (height, width, channels), or a batch of that, as pictures."""
        if not isinstance(images, np.ndarray) or images.ndim not in (3, 4) or images.dtype.kind != "f":
            raise InputError(
                f"images is {described(images)}. A float array (batch, height, width, channels) with "
                "values from 0 to 1 is accepted. For 8-bit values use PIL.Image.fromarray.",
                parameter="images",
            )
        batch = images if images.ndim == 4 else images[None]
        levels = (batch * 255).round()
        in_range = levels.size and levels.min() >= 0 and levels.max() <= 255  # false for NaN, too
        if not in_range or batch.shape[-1] not in (1, 3, 4):
            raise InputError(
                f"images is {described(images)}, with {batch.shape[-1]} channels or with values outside of "
                "0 to 1. Accepted are 1, 3 or 4 channels with values from 0 to 1. Move the channels last, "
                "and clip the values.",
                parameter="images",
            )
        pixels = levels.astype(np.uint8)
        return [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in pixels]

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> Tensor:
        """Convert (batch, height, width[, channels]) to (batch, channels, height, width)."""
        return torch.from_numpy((images if images.ndim == 4 else images[..., None]).transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray:
        """Convert (batch, channels, height, width) to (batch, height, width, channels) in float32."""
        return images.detach().cpu().permute(0, 2, 3, 1).float().numpy()


class IPAdapterMaskProcessor(VaeImageProcessor):
    """Processor of IP-Adapter masks: hard, 1 where an image counts, (masks, 1, height, width)."""

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ):
        super().__init__(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_grayscale=do_convert_grayscale,
        )
