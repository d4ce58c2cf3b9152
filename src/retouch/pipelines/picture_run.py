"""A call that makes pictures: from what the request gives to first latents, and from the last to pictures.

The order of random draws is the reference's, because seeds give its pictures only then: the picture's VAE
sample (where one is needed), the first noise, the masked picture's sample, then the steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.images.sizes import crop_to
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.components import plain
from retouch.pipelines.recording import Recording
from retouch.pipelines.request import Request, Task
from retouch.pipelines.run import Output, Run
from retouch.pipelines.vae import Latents, refuse_foreign
from retouch.sampling.accelerate import DeepReuse
from retouch.sampling.denoise import Progress
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region
from retouch.sampling.start import first_latents
from retouch.sampling.tiles import tiled
from retouch.schedulers.plan import Step

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline


@dataclass
class PipelineOutput(Output):
    """The pictures, and for each whether the safety checker objects (None: it is not loaded)."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    recording: Recording | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return self.images, self.nsfw_content_detected


class PictureRun(Run):
    """A call of a pipeline whose latents are of pictures."""

    pipeline: Pipeline

    def __init__(self, pipeline: Pipeline, task: Task, request: Request) -> None:
        super().__init__(pipeline, task, request)
        refuse_foreign(request.image, pipeline.vae)
        self.pictures = pipeline.prepare(request)
        self.prompts = max(request.prompts, self.pictures.batch)
        self.rows = self.prompts * (request.num_images_per_prompt or 1)
        self._check_rows()
        self._check_reuse()
        self.recording = Recording.wanted(request.record)
        self._pixels: Tensor | None = None
        self.image_weighting: Any = None  # how much the images of IP-Adapters count

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """As the pipeline's method, for the rest of this run alone; for callbacks."""
        if self.image_weighting is not None:
            family: Any = self.pipeline
            self.image_weighting.scales = family.ip_adapter_scales(scale)

    def _check_rows(self) -> None:
        for what, count in (("prompts", self.request.prompts), ("pictures and masks", self.pictures.batch)):
            if count not in (1, self.prompts):
                raise InputError(
                    f"{count} {what} do not go with a batch of {self.prompts}. Give one for all, or one "
                    "for each."
                )
        self.check_generators(self.rows)
        for name, counts in (
            ("latents", {self.rows}),
            ("masked_image_latents", {1, self.prompts, self.rows}),
        ):
            given, fitting = getattr(self.request, name), self._latent_shape(self.rows)
            if given is not None and (given.shape[0] not in counts or tuple(given.shape[1:]) != fitting[1:]):
                raise InputError(
                    f"{name} has the shape {tuple(given.shape)}, but this call makes {fitting}. Give a "
                    "tensor of that shape, or the height and width that belong to it."
                )

    def _check_reuse(self) -> None:
        model = plain(self.pipeline.unet)
        if (self.request.reuse_deep_features or 1) > 1 and not isinstance(model, UNet2DConditionModel):
            raise InputError(
                f"reuse_deep_features={self.request.reuse_deep_features} was given, but the UNet is a "
                f"{type(model).__module__}.{type(model).__name__}. Only a retouch.UNet2DConditionModel keeps "
                "its deep features; load the checkpoint with this library, or leave the argument out."
            )

    def _steps(self) -> Generator[Progress, None, None]:
        if self.pictures.mask is not None and not self.pictures.mask.any():
            self._answer_empty_mask()
        else:
            yield from super()._steps()

    def begin(self, plan: Any) -> tuple[Tensor, Tensor | None, Region | None]:
        latents, noise, original = self._first(plan)
        return latents, *self._mask_inputs(noise, original)

    def accelerated(self, model: Any) -> Any:
        """The UNet, which remembers its deep features if the request says so."""
        every = self.request.reuse_deep_features or 1
        return DeepReuse(model, every) if every > 1 else model

    def windowed(self, predict: Predictor) -> Callable[[Tensor, Step], Tensor]:
        """The prediction in overlapping windows, where the request asks for that."""
        side = self.request.tile_size
        if side is None:
            return predict
        latents = side // self.pipeline.vae_scale_factor
        return tiled(predict, latents, overlap=latents // 4)

    def record(self, plan: Any, progress: Progress, done: int) -> None:
        if self.recording is not None:
            following = plan.following(progress.step)
            level = 0.0 if following is None else plan.level(following)
            self.recording.add(self, progress, done, len(plan), level)

    def _first(self, plan: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """First latents, the noise in them, and the clean latents of the picture where they are needed."""
        pipeline, request = self.pipeline, self.request
        given = None if request.latents is None else request.latents.to(pipeline.device, self.dtype)
        inpainting = self.task.name == "inpaint"
        shape = self._latent_shape(self.rows)
        if given is not None and request.image is not None and not inpainting:
            return given, given, None  # in image2image they are where the run starts, and not noise
        if request.starts_noisy:  # the picture is latents of an earlier stage
            handed = self._encoded_picture()
            return handed, self.draw(shape) if inpainting else handed, handed
        from_noise = request.image is None or given is not None or (inpainting and request.strength == 1)
        original: Tensor | None = None
        if not from_noise or (inpainting and pipeline.keeps_original):
            original = self._encoded_picture()
        noise = self.draw(shape) if given is None else given
        return first_latents(plan, noise, None if from_noise else original), noise, original

    def _latent_shape(self, rows: int) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (
            rows,
            self.pipeline.latent_channels,
            self.pictures.height // factor,
            self.pictures.width // factor,
        )

    def _encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.pipeline.device, self.dtype)
        return self.spread(self.pipeline.encode(pixels, self.source(len(pixels))))

    def _encoded_picture(self) -> Tensor:
        pictures = self.pictures
        if pictures.latents is not None:
            return self.spread(pictures.latents.to(self.pipeline.device, self.dtype))
        assert pictures.pixels is not None
        if isinstance(self.request.generator, Sequence) and self.task.name == "image2image":
            return self._encode(self.spread(pictures.pixels))  # image2image samples for each result anew
        return self._encode(pictures.pixels)

    def _encoded_aside(self) -> Tensor:
        """The picture's latents, drawn apart from the request's generator: no seed's noise changes."""
        pictures = self.pictures
        if pictures.pixels is None:
            return self._encoded_picture()
        sources = [torch.Generator().manual_seed(0) for _ in pictures.pixels]
        pixels = pictures.pixels.to(self.pipeline.device, self.dtype)
        return self.spread(self.pipeline.encode(pixels, sources))

    def _mask_inputs(self, noise: Tensor, original: Tensor | None) -> tuple[Tensor | None, Region | None]:
        """The channels that the model wants joined, and the region that the loop holds to the original."""
        pictures, pipeline = self.pictures, self.pipeline
        if pictures.mask is None:
            return None, None
        repaint = self._shrunk(pictures.mask)
        if not repaint.any():
            warnings.warn(
                f"The hole is so small that it falls between the latents, each of which is "
                f"{pipeline.vae_scale_factor} pixels wide: next to nothing will be repainted. Give "
                f"padding_mask_crop=32 to work on the hole at full size, or a larger mask.",
                stacklevel=2,
            )
        channels = None
        if pipeline.joins_mask:
            channels = pipeline.joined_channels(self, self._shrunk(pictures.hard_mask), original)
        elif (
            pipeline.samples_latents
            and self.task.name == "inpaint"
            and self.request.masked_image_latents is None
            and pictures.latents is None
        ):
            # The reference encodes the masked picture here for nothing, which uses up random numbers.
            self.draw(self._latent_shape(pictures.count))
        if not pipeline.keeps_original:
            if not pictures.is_soft:
                return channels, None
            # Rows with a hard mask are left to the model, as in a call of their own.
            is_soft = self.spread(pictures.soft_rows).to(repaint.device)[:, None, None, None]
            repaint = torch.where(is_soft, repaint, 1.0)
        original = self._encoded_aside() if original is None else original
        return channels, pipeline.region_class(original, repaint, noise)

    def _shrunk(self, mask: Tensor) -> Tensor:
        """A mask at the latents' size, by nearest neighbour as checkpoints were trained with."""
        shrunk = torch.nn.functional.interpolate(mask, size=self._latent_shape(1)[-2:])
        return self.spread(self.pipeline.latent_mask(shrunk.to(self.pipeline.device, self.dtype)))

    def masked_latents(self) -> Tensor:
        """Latents of the picture without what is under the mask."""
        pictures, pipeline = self.pictures, self.pipeline
        if self.request.masked_image_latents is not None:
            return self.spread(self.request.masked_image_latents.to(pipeline.device, self.dtype))
        pixels = pictures.pixels
        if pixels is None:
            assert pictures.latents is not None
            pixels = pipeline.decode(pictures.latents.to(pipeline.device, self.dtype)).float().cpu()
        return self._encode(pixels * (1 - pictures.hard_mask))

    def _answer_empty_mask(self) -> None:
        warnings.warn(
            "The mask is empty: nothing in it is white, so there is nothing to repaint and the picture "
            "comes back as it is. White marks what to repaint; invert the mask if it marks what to keep.",
            stacklevel=2,
        )
        if self.pictures.pixels is None or self.request.output_type == "latent":
            self.dtype = self.pipeline.dtype
            self._latents = self._encoded_picture()
        else:
            self._pixels = self.spread(self.pictures.pixels)

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        return output.to_tuple() if self.pipeline.reports_safety else (output.images,)

    def output(self) -> PipelineOutput:
        request, pictures, pipeline = self.request, self.pictures, self.pipeline
        if request.output_type == "latent":
            assert self._latents is not None
            return PipelineOutput(Latents.of(self._latents, pipeline.vae), recording=self.recording)
        pixels = self._pixels
        if pixels is None:
            assert self._latents is not None
            pixels = self._keep_unmasked(pipeline.decode(self._latents))
        if pictures.cut is not None:
            pixels = crop_to(pixels, *pictures.cut)
        flags = pipeline.flag_unsafe(pixels)
        images = pipeline.image_processor.postprocess(pixels, output_type=request.output_type)
        if pictures.pastes:
            each = self.rows // len(pictures.pastes)
            images = [
                pipeline.image_processor.apply_overlay(mask, original, image, box)
                for image, (original, mask, box) in zip(
                    images, (paste for paste in pictures.pastes for _ in range(each)), strict=True
                )
            ]
        return PipelineOutput(images, flags, self.recording)

    def _keep_unmasked(self, pixels: Tensor) -> Tensor:
        """In a batch, give back the pictures whose own mask is empty."""
        pictures = self.pictures
        if pictures.mask is None or pictures.pixels is None or bool(pictures.mask.amax((1, 2, 3)).all()):
            return pixels
        repainted = self.spread(pictures.mask.amax((1, 2, 3), keepdim=True)).to(pixels.device) > 0
        return torch.where(repainted, pixels, self.spread(pictures.pixels).to(pixels))
