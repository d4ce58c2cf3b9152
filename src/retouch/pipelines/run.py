"""One running call of a pipeline. The run owns everything of its call, so calls cannot disturb each other.

Iterating a run takes the steps and yields after each; `result()` takes the remaining steps and makes the
output.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from retouch.adapters import ip_adapter
from retouch.adapters.controlnet import ControlNetUse
from retouch.errors import Cancelled, InputError, NumericsError
from retouch.families.autoencoder import Latents, refuse_foreign
from retouch.families.call import Call, Task, check_call
from retouch.families.family import Parts
from retouch.families.pictures import arrange
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import crop_to
from retouch.models.lora import rescaled
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.inputs import Batch, Cache, Inputs, make_inputs
from retouch.pipelines.outputs import PipelineOutput
from retouch.pipelines.progress import Recording, StepCallback
from retouch.sampling.accelerate import DeepReuse
from retouch.sampling.conditioning import Conditioning, spread
from retouch.sampling.control import Control
from retouch.sampling.denoise import Progress, denoise
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region
from retouch.sampling.tiles import tiled
from retouch.schedulers.plan import Plan, Step


class Owner(Parts, Protocol):
    """The pipeline of a run, as the run sees it."""

    task: ClassVar[Task]
    controlnet_use: ClassVar[ControlNetUse | None]
    region_class: ClassVar[type[Region]]
    scheduler: Any
    image_processor: VaeImageProcessor
    control_image_processor: VaeImageProcessor

    @property
    def default_size(self) -> int:
        """Side of the pictures that the checkpoint was trained on."""

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors that a callback can get."""

    def progress_bar(self, total: int) -> Any:
        """Return the progress bar of a call."""


class Run:
    """One running call. Callbacks get it as their first argument."""

    rows: int  # of latents
    prompts: int
    dtype: torch.dtype  # of the latents

    def __init__(self, pipeline: Owner, call: Call, cache: Cache | None = None) -> None:
        self.pipeline, self.family, self.task = pipeline, pipeline.family, pipeline.task
        self.call, self.cache = call, cache
        check_call(call, pipeline.layout.multiple, pipeline.tensor_names)
        self.family.check(pipeline, call, self.task)
        self.generator = call.generator  # of the latents' rows, if it is a list
        self.guidance = self.family.guidance(pipeline, call)
        self.num_timesteps = 0
        self.recording: Recording | None = None
        self.cancelled = threading.Event()
        self._interrupt = False
        self._latents: Tensor | None = None
        self._pixels: Tensor | None = None  # of a picture that comes back unchanged
        self._failure: BaseException | None = None
        self.prepare()
        self._progress: Generator[Progress, None, None] = self._steps()

    def prepare(self) -> None:
        """Check the call's pictures and bring them to the working size."""
        pipeline, call = self.pipeline, self.call
        refuse_foreign(call.image, pipeline.part(self.family.autoencoder))
        if self.family.takes_adapters:
            ip_adapter.check(pipeline, call)
        control = pipeline.controlnet_use
        if control is not None:
            control.check(pipeline, call)
        self.pictures = arrange(call, pipeline.image_processor, pipeline.layout, pipeline.default_size)
        if control is not None:
            self.pictures = control.arrange(pipeline, call, self.pictures, pipeline.control_image_processor)
        asked = self.family.prompts(call)
        self.prompts = max(asked, self.pictures.batch)
        self.rows = self.prompts * (call.num_images_per_prompt or 1)
        for what, count in (("prompts", asked), ("pictures and masks", self.pictures.batch)):
            if count not in (1, self.prompts):
                raise InputError(
                    f"{count} {what} do not fit a batch of {self.prompts}. Give one for all or one for each.",
                    parameter="prompt" if what == "prompts" else "image",
                )
        self.check_generators(self.rows)
        self._check_latents()
        self._check_reuse()
        self.recording = Recording.wanted(call.record)
        self.image_weighting = None
        if self.family.takes_adapters:
            self.image_weighting = ip_adapter.weighting(
                pipeline,
                call,
                prompts=self.prompts,
                rows=self.rows,
                size=(self.pictures.height, self.pictures.width),
            )

    def check_generators(self, pictures: int) -> None:
        """Refuse a list of generators that does not have one for each picture."""
        generator = self.call.generator
        if isinstance(generator, Sequence) and len(generator) != pictures:
            raise InputError(
                f"{len(generator)} generators were given for {pictures} pictures. Give one generator, or a "
                "list with one for each picture (prompts x num_images_per_prompt).",
                parameter="generator",
            )

    def _check_latents(self) -> None:
        fitting = self.pipeline.layout.shape(self.rows, self.pictures.height, self.pictures.width)
        counts = {"latents": {self.rows}, "masked_image_latents": {1, self.prompts, self.rows}}
        for name, rows in counts.items():
            given = getattr(self.call, name)
            if given is not None and (given.shape[0] not in rows or tuple(given.shape[1:]) != fitting[1:]):
                raise InputError(
                    f"{name} has the shape {tuple(given.shape)}, but this call makes {fitting}. Give a "
                    "tensor of that shape, or the height and width that belong to it.",
                    parameter=name,
                )

    def _check_reuse(self) -> None:
        model = self.pipeline.part(self.family.denoiser)
        if self.call.reuse_deep_features > 1 and not isinstance(model, UNet2DConditionModel):
            raise InputError(
                f"reuse_deep_features={self.call.reuse_deep_features} was given, but the UNet is a "
                f"{type(model).__module__}.{type(model).__name__}. Only a retouch.UNet2DConditionModel keeps "
                "its deep features; load the checkpoint with this library, or leave the argument out.",
                parameter="reuse_deep_features",
            )

    # What callbacks written for the reference read from a pipeline, and set on it.

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipeline.scheduler

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's parts by name."""
        return self.pipeline.components

    @property
    def device(self) -> torch.device:
        """The device on which the run computes."""
        return self.pipeline.device

    @property
    def guidance_scale(self) -> float:
        """The present scale; a callback may set `_guidance_scale` to change it between two steps."""
        return self.guidance.scale

    @property
    def _guidance_scale(self) -> float:
        return self.guidance.scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float) -> None:
        self.guidance.scale, self.guidance.active = scale, self.family.is_guided(self.pipeline, scale)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """True while the model computes both halves of the guidance."""
        return self.guidance.active

    @property
    def interrupt(self) -> bool:
        """True after `stop`; the reference's callbacks set `_interrupt` instead."""
        return self._interrupt

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Set the scale of IP-Adapters for the rest of this run alone."""
        if self.image_weighting is not None:
            self.image_weighting.scales = ip_adapter.ip_adapter_scales(self.pipeline, scale)

    def cancel(self) -> None:
        """Stop before the next step: the run raises Cancelled. Any thread may call this."""
        self.cancelled.set()

    def stop(self) -> None:
        """Take no further step, and decode the present latents."""
        self._interrupt = True

    def close(self) -> None:
        """End an unfinished run and free its memory, in the thread that iterates it; `with` does it too."""
        if self._failure is None and inspect.getgeneratorstate(self._progress) != inspect.GEN_CLOSED:
            self._progress.close()
            self._failure = Cancelled("The run was closed before its end.")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Progress]:
        return self

    @torch.no_grad()  # around each step, not across a yield: there it would leak into the caller's code
    def __next__(self) -> Progress:
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._progress)
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, StopIteration):
                self._failure = error  # otherwise `result` would decode half-finished latents
            raise

    @torch.no_grad()
    def result(self) -> Any:
        """Take the remaining steps, and return the output as the call asks for it."""
        for _ in self:
            pass
        output = self.output()
        return output if self.call.return_dict else self.as_tuple(output)

    def read(self, guided: bool) -> Any:
        """Return what the encoders make of the prompts."""
        return self.family.read(self.pipeline, self.call, guided=guided)

    def condition(self) -> Conditioning:
        """Return the denoiser's inputs other than latents."""
        pipeline, call, guided = self.pipeline, self.call, self.guidance.active
        if self.cache is None:
            read = self.read(guided)
        else:
            read = self.cache.read(pipeline, call, guided=guided, make=lambda: self.read(guided))
        conditioning = self.family.condition(
            pipeline, call, read, rows=self.rows, size=self.size, task=self.task
        )
        if self.image_weighting is None:
            return conditioning
        return ip_adapter.conditioned(pipeline, call, conditioning, self.image_weighting, self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that the run works on."""
        return self.pictures.height, self.pictures.width

    def begin(self, plan: Plan) -> Inputs:
        """Return what the loop starts with."""
        return make_inputs(self._batch(), plan)

    def _batch(self) -> Batch:
        return Batch(
            parts=self.pipeline,
            family=self.family,
            call=self.call,
            task=self.task,
            pictures=self.pictures,
            rows=self.rows,
            dtype=self.dtype,
            generator=self.generator,
            region_class=self.pipeline.region_class,
            cache=self.cache,
        )

    def _steps(self) -> Generator[Progress, None, None]:
        if self._has_empty_mask():
            self._return_unchanged()
            return
        pipeline, family, call = self.pipeline, self.family, self.call
        conditioning = self.condition()
        self.dtype = conditioning.dtype
        plan, requested = family.schedule(pipeline, call, self.size, self.generator)
        self.num_timesteps = len(plan)
        inputs = self.begin(plan)
        self._raise_if_cancelled(0)
        with (
            pipeline.using(family.denoiser) as placed,
            self._control(plan) as control,
            pipeline.progress_bar(total=requested) as bar,
        ):
            model = family.denoise_with(pipeline, rescaled(placed, call.lora_scale))
            if call.reuse_deep_features > 1:
                model = DeepReuse(model, call.reuse_deep_features)
            predict = Predictor(
                model, plan, self.guidance, self.guidance.pair(conditioning), inputs.channels, control
            )
            callback = StepCallback(self, predict, inputs.region)
            silent = len(plan) - requested * plan.order  # steps of PNDM's warm-up, beyond those requested
            steps = denoise(self._windowed(predict), plan, inputs.latents, inputs.region)
            for done, progress in enumerate(steps, start=1):
                if not bool(progress.latents.isfinite().all()):
                    raise NumericsError(self._explain_nan(done))
                callback(done - 1, progress)
                self._latents = progress.latents
                if self.recording is not None:
                    self.recording.add(self, plan, progress, done)
                if done == len(plan) or (done > silent and done % plan.order == 0):
                    bar.update()
                yield progress
                self._latents = progress.latents
                self._raise_if_cancelled(done)
                if self._interrupt:
                    return

    def _control(self, plan: Plan) -> AbstractContextManager[Control | None]:
        """Return a context with the control of the run, or with None without a ControlNet."""
        use = self.pipeline.controlnet_use
        if use is None:
            return nullcontext()
        return use.control(self.pipeline, self.call, self.pictures, plan, self.rows)

    def _windowed(self, predict: Predictor) -> Callable[[Tensor, Step], Tensor]:
        """Return the prediction, in overlapping windows if the call asks for them."""
        if self.call.tile_size is None:
            return predict
        layout = self.pipeline.layout
        latents = self.call.tile_size // layout.multiple * layout.packing
        return tiled(predict, latents, overlap=latents // 4, multiple=layout.packing)

    def _raise_if_cancelled(self, done: int) -> None:
        if self.cancelled.is_set():
            raise Cancelled(f"The run was cancelled after {done} of {self.num_timesteps} steps.")

    def _explain_nan(self, done: int) -> str:
        dtype = getattr(self.pipeline.part(self.family.denoiser), "dtype", None)
        cure = "Look for a broken or half-converted checkpoint, or a far too high guidance_scale."
        if dtype == torch.float16:
            cure = "Load the pipeline with dtype=torch.bfloat16 or torch.float32."
        return f"The latents became NaN or infinite in step {done}, with weights in {dtype}. {cure}"

    def _has_empty_mask(self) -> bool:
        masks = self.pictures.masks
        return bool(masks) and all(mask.is_empty for mask in masks)

    def _return_unchanged(self) -> None:
        """Prepare the picture itself as the result."""
        warnings.warn(
            "The mask is empty: nothing in it is white, so nothing is repainted and the picture comes back "
            "unchanged. White marks what to repaint; invert the mask if it marks what to keep.",
            stacklevel=2,
        )
        if self.pictures.pixels is None or self.call.output_type == "latent":
            self.dtype = self.pipeline.dtype
            self._latents = self._batch().encoded_picture()
        else:
            self._pixels = spread(self.pictures.pixels, self.rows)

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        """Return what the reference returns with `return_dict=False`."""
        return output.to_tuple() if self.family.reports_safety else (output.images,)

    def output(self) -> Any:
        """Make the output from the last latents."""
        call, pictures, pipeline = self.call, self.pictures, self.pipeline
        if call.output_type == "latent":
            assert self._latents is not None
            marked = Latents.of(self._latents, pipeline.part(self.family.autoencoder))
            return PipelineOutput(marked, recording=self.recording)
        pixels = self._pixels
        if pixels is None:
            assert self._latents is not None
            pixels = self._keep_unmasked(self.family.decode(pipeline, self._latents))
        if pictures.cut is not None:
            pixels = crop_to(pixels, *pictures.cut)
        processor = pipeline.image_processor
        flags = self.family.flag_unsafe(pipeline, pixels, processor)
        images = processor.postprocess(pixels, output_type=call.output_type)
        if pictures.pastes:
            each = self.rows // len(pictures.pastes)
            images = [
                processor.apply_overlay(mask.image(), original, image, box)
                for image, (original, mask, box) in zip(
                    images, (paste for paste in pictures.pastes for _ in range(each)), strict=True
                )
            ]
        return PipelineOutput(images, flags, self.recording)

    def _keep_unmasked(self, pixels: Tensor) -> Tensor:
        """In a batch, give back the pictures whose own mask is empty."""
        pictures = self.pictures
        if pictures.pixels is None or not any(mask.is_empty for mask in pictures.masks):
            return pixels
        is_empty = torch.tensor([mask.is_empty for mask in pictures.masks], device=pixels.device)
        unchanged = spread(pictures.pixels, self.rows).to(pixels)
        return torch.where(spread(is_empty, self.rows)[:, None, None, None], unchanged, pixels)
