"""One call of a pipeline. The run owns everything of its request, so calls cannot disturb each other.

Iterating a run takes the steps and yields after each; `result()` decodes. The order of random draws is
the reference's, because seeds give its pictures only then: the picture's VAE sample (where one is
needed), the first noise, the masked picture's sample, then the steps.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retouch.devices import randn
from retouch.errors import Cancelled, InputError, NumericsError
from retouch.images.sizes import crop_to
from retouch.models.lora import scaled
from retouch.pipelines.callbacks import Listener
from retouch.pipelines.recording import Recording
from retouch.pipelines.request import Request, Task
from retouch.pipelines.vae import Latents, refuse_foreign
from retouch.sampling.denoise import Progress, denoise
from retouch.sampling.guidance import Guidance
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region
from retouch.sampling.start import first_latents
from retouch.sampling.tiles import tiled
from retouch.schedulers.foreign import as_plan
from retouch.schedulers.plan import Step

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline


@dataclass
class PipelineOutput:
    """The pictures, and for each whether the safety checker objects (None: it is not loaded)."""

    images: Any
    nsfw_content_detected: list[bool] | None = None
    recording: Recording | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that the reference has, as a plain tuple."""
        return self.images, self.nsfw_content_detected

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


class Run:
    """A request on its way. Attributes that it lacks are the pipeline's, as callbacks expect."""

    def __init__(self, pipeline: Pipeline, task: Task, request: Request) -> None:
        request.check(pipeline.vae_scale_factor, pipeline.listenable)
        self.pipeline, self.task, self.request = pipeline, task, request
        pipeline.check(request)
        refuse_foreign(request.image, pipeline.vae)
        self.pictures = pipeline.prepare(request)
        self.prompts = max(request.prompts, self.pictures.batch)
        self.rows = self.prompts * (request.num_images_per_prompt or 1)
        self._check_rows()
        self.guidance = Guidance(
            request.guidance_scale,
            request.guidance_rescale,
            active=pipeline.uses_guidance(request.guidance_scale),
        )
        self.recording = Recording.wanted(request.record)
        self.num_timesteps = 0
        self._interrupt = False
        self._cancelled = threading.Event()
        self._latents: Tensor | None = None
        self._pixels: Tensor | None = None
        self._failure: BaseException | None = None
        self._progress: Generator[Progress, None, None] = self._steps()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipeline"], name)

    def _check_rows(self) -> None:
        for what, count in (("prompts", self.request.prompts), ("pictures and masks", self.pictures.batch)):
            if count not in (1, self.prompts):
                raise InputError(
                    f"{count} {what} do not go with a batch of {self.prompts}. Give one for all, or one "
                    "for each."
                )
        generator = self.request.generator
        if isinstance(generator, Sequence) and len(generator) != self.rows:
            raise InputError(
                f"{len(generator)} generators were given for {self.rows} pictures. Give one generator, or a "
                "list with one for each picture (prompts x num_images_per_prompt)."
            )
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

    def cancel(self) -> None:
        """Give up before the next step: the run raises Cancelled. Any thread may call this."""
        self._cancelled.set()

    def close(self) -> None:
        """Give up an unfinished run and what it holds, in the thread that iterates it; `with` does it too."""
        if self._failure is None and inspect.getgeneratorstate(self._progress) != inspect.GEN_CLOSED:
            self._progress.close()
            self._failure = Cancelled("The run was closed before its end.")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _heed_cancel(self, done: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled(f"The run was cancelled after {done} of {self.num_timesteps} steps.")

    def stop(self) -> None:
        """Take no further step, and decode what there is."""
        self._interrupt = True

    @property
    def interrupt(self) -> bool:
        """Whether `stop` was called; the reference's callbacks set `_interrupt` instead."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """The scale now; a callback may set `_guidance_scale` to change it between two steps."""
        return self.guidance.scale

    @property
    def _guidance_scale(self) -> float:
        return self.guidance.scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        self.guidance.scale, self.guidance.active = scale, self.pipeline.uses_guidance(scale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model sees both sides now."""
        return self.guidance.active

    def spread(self, values: Tensor) -> Tensor:
        """One row for each picture to make, from one for all or one for each prompt."""
        if values.shape[0] == 1:
            return values.repeat(self.rows, *[1] * (values.ndim - 1))
        return values.repeat_interleave(self.rows // values.shape[0], dim=0)

    def __iter__(self) -> Iterator[Progress]:
        return self

    @torch.no_grad()  # around each step, not across a yield: there it would leak into the caller's code
    def __next__(self) -> Progress:
        if self._failure is not None:
            raise self._failure
        try:
            with scaled(self.request.lora_scale):
                return next(self._progress)
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, StopIteration):
                self._failure = error  # else `result` would decode what is half done
            raise

    @torch.no_grad()
    def result(self) -> Any:
        """Take the steps that are left, decode, and give the pictures as the request wants them."""
        for _ in self:
            pass
        output = self._decoded()
        if self.request.return_dict:
            return output
        return output.to_tuple() if self.pipeline.reports_safety else (output.images,)

    def _steps(self) -> Generator[Progress, None, None]:
        pipeline, pictures = self.pipeline, self.pictures
        if pictures.mask is not None and not pictures.mask.any():
            self._answer_empty_mask()
            return
        conditioning = pipeline.condition(self)
        self.dtype = conditioning.dtype
        plan, requested = self._plan()
        self.num_timesteps = len(plan)
        latents, noise, original = self._first(plan)
        channels, region = self._mask_inputs(noise, original)
        self._heed_cancel(0)
        with (
            pipeline.placement.using("unet") as unet,
            pipeline.control(self, plan) as control,
            pipeline.progress_bar(total=requested) as bar,
        ):
            inputs = self.guidance.pair(conditioning)
            predict = Predictor(unet, plan, self.guidance, inputs, channels, control)
            listener = Listener(self, predict, region)
            silent = len(plan) - requested * plan.order  # PNDM's warm-up takes steps that nobody asked for
            for done, progress in enumerate(denoise(self._windowed(predict), plan, latents, region), start=1):
                if not bool(progress.latents.isfinite().all()):
                    raise NumericsError(self._explain_nan(done))
                listener.hear(done - 1, progress)
                self._latents = progress.latents
                if self.recording is not None:
                    following = plan.following(progress.step)
                    level = 0.0 if following is None else plan.level(following)
                    self.recording.add(self, progress, done, len(plan), level)
                if done == len(plan) or (done > silent and done % plan.order == 0):
                    bar.update()
                yield progress
                self._latents = progress.latents
                self._heed_cancel(done)
                if self._interrupt:
                    return

    def _windowed(self, predict: Predictor) -> Callable[[Tensor, Step], Tensor]:
        """The prediction in overlapping windows, where the request asks for that."""
        side = self.request.tile_size
        if side is None:
            return predict
        if predict.control is not None:
            raise InputError(
                "tile_size was given to a pipeline with a ControlNet, whose picture is not cut into windows. "
                "Leave one of them out."
            )
        latents = max(1, side // self.pipeline.vae_scale_factor)
        return tiled(predict, latents, overlap=latents // 4)

    def _plan(self) -> tuple[Any, int]:
        """The schedule that is left after strength, and how many of the requested steps that is."""
        request = self.request
        custom = request.timesteps is not None or request.sigmas is not None
        plan = as_plan(
            self.pipeline.scheduler,
            None if custom else request.num_inference_steps,
            timesteps=request.timesteps,
            sigmas=request.sigmas,
            device=self.pipeline.device,
            generator=request.generator,
            eta=request.eta,
        )
        requested = len(plan) if custom else request.num_inference_steps
        return self.pipeline.part_of(plan, requested, request)

    def _explain_nan(self, done: int) -> str:
        dtype = getattr(self.pipeline.unet, "dtype", None)
        cure = "Look for a broken or half-converted checkpoint, or a far too high guidance_scale."
        if dtype == torch.float16:
            cure = "Load the pipeline with dtype=torch.bfloat16 or torch.float32."
        return f"The latents became NaN or infinite in step {done}, with weights in {dtype}. {cure}"

    def _first(self, plan: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """First latents, the noise in them, and the clean latents of the picture where they are needed."""
        pipeline, request = self.pipeline, self.request
        given = None if request.latents is None else request.latents.to(pipeline.device, self.dtype)
        inpainting = self.task.name == "inpaint"
        shape = self._latent_shape(self.rows)
        if request.starts_noisy:  # the picture is latents of an earlier stage
            handed = self._encoded_picture()
            return handed, self._draw(shape) if inpainting else handed, handed
        from_noise = request.image is None or given is not None or (inpainting and request.strength == 1)
        original: Tensor | None = None
        if not from_noise or (inpainting and pipeline.keeps_original):
            original = self._encoded_picture()
        if given is not None and request.image is not None and not inpainting:
            return given, given, None  # in image2image they are where the run starts, and not noise
        noise = self._draw(shape) if given is None else given
        return first_latents(plan, noise, None if from_noise else original), noise, original

    def _latent_shape(self, rows: int) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (
            rows,
            self.pipeline.latent_channels,
            self.pictures.height // factor,
            self.pictures.width // factor,
        )

    def _source(self, count: int) -> Any:
        """What draws `count` rows: of a list, the generator of the first picture made from each of them."""
        generator = self.request.generator
        return generator[:: self.rows // count] if isinstance(generator, Sequence) else generator

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        source = self._source(shape[0])
        return randn(shape, generator=source, device=self.pipeline.device, dtype=self.dtype)

    def _encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.pipeline.device, self.dtype)
        return self.spread(self.pipeline.encode(pixels, self._source(len(pixels))))

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
            channels = pipeline.joined_channels(self._shrunk(pictures.hard_mask), self._masked_latents())
        elif (
            self.task.name == "inpaint"
            and self.request.masked_image_latents is None
            and pictures.latents is None
        ):
            # The reference encodes the masked picture here for nothing, which uses up random numbers.
            self._draw(self._latent_shape(pictures.count))
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
        size = self._latent_shape(1)[-2:]
        return self.spread(
            torch.nn.functional.interpolate(mask, size=size).to(self.pipeline.device, self.dtype)
        )

    def _masked_latents(self) -> Tensor:
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

    def _decoded(self) -> PipelineOutput:
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
