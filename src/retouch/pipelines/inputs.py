"""From a call to what the loop starts with: first latents, noise, original, joined channels and region.

`make_inputs` is a pure function. It draws random numbers in the reference's order, because only then do seeds
give its pictures: the picture's VAE sample (where one is needed), the first noise, the masked picture's
sample, then the steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retouch.devices import randn
from retouch.families.call import Call, Task
from retouch.families.family import Family, Parts
from retouch.families.pictures import Pictures
from retouch.images.mask import Mask
from retouch.sampling.conditioning import spread
from retouch.sampling.region import Region
from retouch.sampling.start import first_latents
from retouch.schedulers.plan import Plan


class Cache(Protocol):
    """Results kept from call to call. With a cache, pictures are always encoded with the same noise."""

    def read(self, parts: Parts, call: Call, *, guided: bool, make: Callable[[], Any]) -> Any:
        """Return what the encoders make of a call's prompts, by `make` where it is not kept."""

    def encoded(self, parts: Parts, pixels: Tensor, make: Callable[[Any], Tensor]) -> Tensor:
        """Return the latents of pixels, by `make` of a generator where they are not kept."""


@dataclass(frozen=True)
class Inputs:
    """The tensors of a run's loop."""

    latents: Tensor  # the first ones
    noise: Tensor
    original: Tensor | None = None  # clean latents of the picture, where the loop needs them
    channels: Tensor | None = None  # joined after the latents
    region: Region | None = None


@dataclass(frozen=True)
class Batch:
    """A call on its way to inputs: its pictures, and how many rows of latents it makes."""

    parts: Parts
    family: Family
    call: Call
    task: Task
    pictures: Pictures
    rows: int
    dtype: torch.dtype
    generator: Any  # one, or one for each row
    region_class: type[Region] = Region
    cache: Cache | None = None

    @property
    def is_inpainting(self) -> bool:
        return self.task.name == "inpaint"

    def latent_shape(self, rows: int) -> tuple[int, int, int, int]:
        """Return the shape of `rows` rows of latents."""
        return self.parts.layout.shape(rows, self.pictures.height, self.pictures.width)

    def source(self, count: int) -> Any:
        """Return the generator of `count` rows: of a list, that of the first picture made from each row."""
        generator = self.generator
        return generator[:: self.rows // count] if isinstance(generator, Sequence) else generator

    def draw(self, count: int) -> Tensor:
        """Draw noise for `count` rows of latents."""
        source = self.source(count)
        return randn(self.latent_shape(count), generator=source, device=self.parts.device, dtype=self.dtype)

    def placed(self, values: Tensor) -> Tensor:
        """Return values on the pipeline's device, in the latents' dtype."""
        return values.to(self.parts.device, self.dtype)

    def encoded(self, pixels: Tensor, *, generator: Any = None) -> Tensor:
        """Return latents of pixels, one row for each picture to make."""
        pixels = self.placed(pixels)

        def make(source: Any) -> Tensor:
            return self.family.encode(self.parts, pixels, source)

        if self.cache is not None:
            return spread(self.cache.encoded(self.parts, pixels, make), self.rows)
        return spread(make(self.source(len(pixels)) if generator is None else generator), self.rows)

    def encoded_picture(self) -> Tensor:
        """Return the clean latents of the picture."""
        pictures = self.pictures
        if pictures.latents is not None:
            return spread(self.placed(pictures.latents), self.rows)
        assert pictures.pixels is not None
        if isinstance(self.call.generator, Sequence) and self.task.name == "image2image":
            return self.encoded(spread(pictures.pixels, self.rows))  # image2image samples for each result
        return self.encoded(pictures.pixels)

    def encoded_with_fixed_seed(self) -> Tensor:
        """Return the clean latents, sampled with a fixed seed, not with the call's generator."""
        pixels = self.pictures.pixels
        if pixels is None:
            return self.encoded_picture()
        return self.encoded(pixels, generator=[torch.Generator().manual_seed(0) for _ in pixels])

    def masked_latents(self) -> Tensor:
        """Return latents of the picture with the masked area blanked."""
        call, pictures = self.call, self.pictures
        if call.masked_image_latents is not None:
            return spread(self.placed(call.masked_image_latents), self.rows)
        pixels = pictures.pixels
        if pixels is None:
            assert pictures.latents is not None
            pixels = self.family.decode(self.parts, self.placed(pictures.latents)).float().cpu()
        kept = 1 - torch.cat([mask.tensor() for mask in pictures.hard_masks])
        return self.encoded(pixels * kept)

    def latent_mask(self, masks: Sequence[Mask]) -> Tensor:
        """Return masks at the latents' size, one row for each picture to make."""
        size = self.parts.layout.size(self.pictures.height, self.pictures.width)
        shrunk = self.placed(torch.cat([mask.to_latents(*size) for mask in masks]))
        return spread(self.family.latent_mask(shrunk), self.rows)


def make_inputs(batch: Batch, plan: Plan) -> Inputs:
    """Return what the loop starts with."""
    latents, noise, original = _start(batch, plan)
    if not batch.pictures.masks:
        return Inputs(latents, noise, original)
    channels, region = _mask_inputs(batch, noise, original)
    return Inputs(latents, noise, original, channels, region)


def _start(batch: Batch, plan: Plan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return first latents, the noise in them, and the clean latents of the picture where they are needed."""
    call, family = batch.call, batch.family
    given = None if call.latents is None else batch.placed(call.latents)
    if given is not None and call.image is not None and not batch.is_inpainting:
        return given, given, None  # in image2image the run starts from them; they are not noise
    if family.starts_noisy(call):  # the picture is latents of an earlier stage
        handed = batch.encoded_picture()
        return handed, batch.draw(batch.rows) if batch.is_inpainting else handed, handed
    from_noise = call.image is None or given is not None or (batch.is_inpainting and call.strength == 1)
    original: Tensor | None = None
    if not from_noise or (batch.is_inpainting and family.keeps_original(batch.parts)):
        original = batch.encoded_picture()
    noise = batch.draw(batch.rows) if given is None else given
    return first_latents(plan, noise, None if from_noise else original), noise, original


def _mask_inputs(batch: Batch, noise: Tensor, original: Tensor | None) -> tuple[Tensor | None, Region | None]:
    """Return the channels that the denoiser takes, and the region that the loop holds to the original."""
    pictures, family, parts = batch.pictures, batch.family, batch.parts
    repaint = batch.latent_mask(pictures.masks)
    if not repaint.any():
        warnings.warn(
            f"The mask is so small that it falls between the latents, which are {parts.layout.stride} pixels "
            "wide: hardly anything will be repainted. Give padding_mask_crop=32 to work on the masked area "
            "at full size, or a larger mask.",
            stacklevel=2,
        )
    channels = None
    if family.joins_mask(parts):
        channels = family.channels(batch.latent_mask(pictures.hard_masks), original, batch.masked_latents)
    elif (
        batch.is_inpainting
        and family.draws_latents(parts)
        and batch.call.masked_image_latents is None
        and pictures.latents is None
        and batch.cache is None
    ):
        batch.draw(pictures.count)  # the reference encodes the masked picture here and does not use it
    if not family.keeps_original(parts):
        if not pictures.is_soft:
            return channels, None
        # Rows with a hard mask are left to the model, as in a call of their own.
        is_soft = torch.tensor([mask.is_soft for mask in pictures.masks], device=repaint.device)
        repaint = torch.where(spread(is_soft, batch.rows)[:, None, None, None], repaint, 1.0)
    original = batch.encoded_with_fixed_seed() if original is None else original
    return channels, batch.region_class(original, repaint, noise)
