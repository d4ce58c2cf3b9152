"""One call of a pipeline. The run owns everything of its request, so calls cannot disturb each other.

Iterating a run takes the steps and yields after each; `result()` turns what they leave into the output. What
the latents are of and where they start is the business of a kind of run: pictures in picture_run.py.
"""

from __future__ import annotations

import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retouch.devices import randn
from retouch.errors import Cancelled, InputError, NumericsError
from retouch.models.lora import scaled
from retouch.models.prepared.graphs import recorded
from retouch.models.prepared.prepare import is_prepared, pack
from retouch.models.prepared.weights import has_hooks
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.callbacks import Listener
from retouch.pipelines.request import Request, Task
from retouch.sampling.denoise import Progress, denoise
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region
from retouch.schedulers.foreign import as_plan
from retouch.schedulers.plan import Step

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import BasePipeline


class Output(ABC):
    """What a call returns: fields by name, and as the tuple that the reference returns."""

    @abstractmethod
    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that the reference has, as a plain tuple."""

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


class Run(ABC):
    """A request on its way. Attributes that it lacks are the pipeline's, as callbacks expect."""

    rows: int  # of latents
    dtype: torch.dtype  # of the latents

    def __init__(self, pipeline: BasePipeline, task: Task, request: Request) -> None:
        request.check(pipeline.size_factor, pipeline.tensor_names)
        self.pipeline, self.task, self.request = pipeline, task, request
        pipeline.check(request)
        self.generator = request.generator  # of the latents' rows, if it is a list
        self.guidance = pipeline.guidance(request)
        self.num_timesteps = 0
        self.cancelled = threading.Event()
        self._interrupt = False
        self._latents: Tensor | None = None
        self._failure: BaseException | None = None
        self._progress: Generator[Progress, None, None] = self._steps()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipeline"], name)

    @abstractmethod
    def begin(self, plan: Any) -> tuple[Tensor, Tensor | None, Region | None]:
        """The first latents, the channels that the model wants joined to them, and the region to hold."""

    @abstractmethod
    def output(self) -> Output:
        """What comes of the last latents."""

    def accelerated(self, model: Any) -> Any:
        """The model, sparing itself what the request allows it to."""
        return model

    def windowed(self, predict: Predictor) -> Callable[[Tensor, Step], Tensor]:
        """The prediction, in windows where the request asks for that."""
        return predict

    def record(self, plan: Any, progress: Progress, done: int) -> None:
        """Keep what is wanted of a step."""

    def check_generators(self, pictures: int) -> None:
        """Refuse a list of generators that is not one for each picture."""
        generator = self.request.generator
        if isinstance(generator, Sequence) and len(generator) != pictures:
            raise InputError(
                f"{len(generator)} generators were given for {pictures} pictures. Give one generator, or a "
                "list with one for each picture (prompts x num_images_per_prompt)."
            )

    def cancel(self) -> None:
        """Give up before the next step: the run raises Cancelled. Any thread may call this."""
        self.cancelled.set()

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
        if self.cancelled.is_set():
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
        """Take the steps that are left, and give what comes of them as the request wants it."""
        for _ in self:
            pass
        output = self.output()
        return output if self.request.return_dict else self.as_tuple(output)

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        """What the reference returns instead with `return_dict=False`."""
        return output.to_tuple()

    def _steps(self) -> Generator[Progress, None, None]:
        pipeline = self.pipeline
        conditioning = pipeline.condition(self)
        self.dtype = conditioning.dtype
        plan, requested = self._plan()
        self.num_timesteps = len(plan)
        latents, channels, region = self.begin(plan)
        self._heed_cancel(0)
        with (
            pipeline.placement.using(pipeline.denoiser) as model,
            pipeline.control(self, plan) as control,
            pipeline.progress_bar(total=requested) as bar,
        ):
            inputs = self.guidance.pair(conditioning)
            shares_sides = _can_share_sides(model)
            if pipeline.placement.is_lasting:
                if isinstance(model, torch.nn.Module):
                    pack(model)
                model = recorded(model)
            model = self.accelerated(model)
            predict = Predictor(model, plan, self.guidance, inputs, channels, control, shares_sides)
            listener = Listener(self, predict, region)
            silent = len(plan) - requested * plan.order  # PNDM's warm-up takes steps that nobody asked for
            for done, progress in enumerate(denoise(self.windowed(predict), plan, latents, region), start=1):
                if not bool(progress.latents.isfinite().all()):
                    raise NumericsError(self._explain_nan(done))
                listener.hear(done - 1, progress)
                self._latents = progress.latents
                self.record(plan, progress, done)
                if done == len(plan) or (done > silent and done % plan.order == 0):
                    bar.update()
                yield progress
                self._latents = progress.latents
                self._heed_cancel(done)
                if self._interrupt:
                    return

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
            generator=self.generator,
            eta=request.eta,
        )
        requested = len(plan) if custom else request.num_inference_steps
        return self.pipeline.part_of(plan, requested, request)

    def _explain_nan(self, done: int) -> str:
        dtype = getattr(self.pipeline.components[self.pipeline.denoiser], "dtype", None)
        cure = "Look for a broken or half-converted checkpoint, or a far too high guidance_scale."
        if dtype == torch.float16:
            cure = "Load the pipeline with dtype=torch.bfloat16 or torch.float32."
        return f"The latents became NaN or infinite in step {done}, with weights in {dtype}. {cure}"

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Noise for so many rows: of a list of generators, the first row made from each draws."""
        source = self.source(shape[0])
        return randn(shape, generator=source, device=self.pipeline.device, dtype=self.dtype)

    def source(self, count: int) -> Any:
        """What draws `count` rows: of a list, the generator of the first picture made from each of them."""
        generator = self.generator
        return generator[:: self.rows // count] if isinstance(generator, Sequence) else generator


def _can_share_sides(model: Any) -> bool:
    """Whether a model may compute what is equal on both sides of the guidance once: a prepared UNet.

    But whoever listens to one of its layers, or put something in place of its forward, expects both sides.
    """
    if type(model) is not UNet2DConditionModel or not is_prepared(model):
        return False
    return not any("forward" in layer.__dict__ or has_hooks(layer) for layer in model.modules())
