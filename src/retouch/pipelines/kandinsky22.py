"""Kandinsky 2.2's prior as a pipeline, and prior and decoder as one pipeline that starts from prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from retouch.checkpoints.locate import Checkpoint
from retouch.devices import randn
from retouch.errors import CheckpointError, InputError
from retouch.families.call import Call, Task, check_call, check_texts
from retouch.families.kandinsky22 import KANDINSKY_22, ImageEmbeds
from retouch.families.kandinsky22_prior import KANDINSKY_22_PRIOR, PriorCall, as_list, negative_prompts
from retouch.images.modes import plain_rgb
from retouch.pipelines import signatures
from retouch.pipelines.inputs import Cache, Inputs
from retouch.pipelines.loading import named_parts
from retouch.pipelines.outputs import PriorOutput
from retouch.pipelines.parts import NamedParts, PartNames
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.placement import Prefixed
from retouch.pipelines.run import Run
from retouch.sampling.start import first_latents
from retouch.schedulers.plan import Plan

PREFIX = "prior_"  # of the prior's parts in a combined pipeline


class PriorRun(Run):
    """One running call of the prior. Its latents are embeddings."""

    def prepare(self) -> None:
        """Count the rows: one for each picture, and the same again behind them with a negative prompt."""
        check_texts(self.call)
        self.unwanted = negative_prompts(self.call)
        self.prompts = len(as_list(self.call.prompt))
        pictures = self.prompts * (self.call.num_images_per_prompt or 1)
        self.check_generators(pictures)
        groups = 2 if self.unwanted else 1
        self.rows = groups * pictures
        if isinstance(self.generator, Sequence):
            self.generator = [*self.generator] * groups
        given = self.call.latents
        if given is not None and tuple(given.shape) != self._shape:
            raise InputError(
                f"latents has the shape {tuple(given.shape)}, but this call of the prior makes "
                f"{self._shape}: a row for each picture, and the same number again with a negative prompt.",
                parameter="latents",
            )
        self.image_weighting = None

    @property
    def _shape(self) -> tuple[int, int]:
        return self.rows, self.pipeline.layout.channels

    @property
    def size(self) -> tuple[int, int]:
        """No size: embeddings are not pictures."""
        return 0, 0

    def _has_empty_mask(self) -> bool:
        return False

    def begin(self, plan: Plan) -> Inputs:
        given, device = self.call.latents, self.pipeline.device
        if given is None:
            noise = randn(self._shape, generator=self.generator, device=device, dtype=self.dtype)
        else:
            noise = given.to(device, self.dtype)
        return Inputs(first_latents(plan, noise), noise)

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        return output.to_tuple()

    def output(self) -> PriorOutput:
        assert self._latents is not None
        pipeline: Any = self.pipeline
        with pipeline.using("prior") as prior:
            embeds = prior.post_process_latents(self._latents)
        if self.unwanted:
            positive, negative = embeds.chunk(2)
        else:
            positive, negative = embeds, pipeline.get_zero_embed(len(embeds))
        if self.call.output_type == "np":
            return PriorOutput(positive.float().cpu().numpy(), negative.float().cpu().numpy())
        return PriorOutput(positive, negative)

    def use_up_random_numbers(self) -> None:
        """Draw the random numbers of a whole run, without the model."""
        self.dtype = self.pipeline.part("text_encoder").dtype
        plan, _ = self.family.schedule(self.pipeline, self.call, self.size, self.generator)
        latents = self.begin(plan).latents
        for step in plan:
            latents = plan.advance(latents, step, latents)


class KandinskyV22PriorPipeline(Pipeline):
    """Image embeddings from prompts."""

    family = KANDINSKY_22_PRIOR
    task = Task(
        "the prior",
        defaults={"num_inference_steps": 25, "guidance_scale": 4.0, "output_type": "pt"},
    )
    call_type = PriorCall
    unlisted_components: ClassVar = {}
    __call__ = signatures.kandinsky22_prior

    def __init__(self, **components: Any) -> None:
        NamedParts.__init__(self, **components)  # without a picture's processors

    def _run(self, arguments: Mapping[str, Any], cache: Cache | None = None) -> PriorRun:
        return PriorRun(self, self._make_call(arguments), cache)

    @torch.no_grad()
    def get_zero_embed(self, batch_size: int = 1, device: Any = None) -> Tensor:
        """Return the embedding of an empty picture: what guidance pushes away from by default."""
        with self.using("image_encoder") as encoder:
            side = encoder.config.image_size
            empty = torch.zeros(1, 3, side, side, device=self.device, dtype=encoder.dtype)
            embeds: Tensor = encoder(empty).image_embeds
        return embeds.repeat(batch_size, 1).to(self.device if device is None else device)

    @torch.no_grad()
    def interpolate(
        self,
        images_and_prompts: Sequence[str | Image.Image | Tensor],
        weights: Sequence[float],
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 25,
        generator: Any = None,
        latents: Tensor | None = None,
        negative_prior_prompt: str | None = None,
        negative_prompt: str = "",
        guidance_scale: float = 4.0,
        device: Any = None,
    ) -> PriorOutput:
        """Return the weighted sum of the embeddings of prompts and pictures.

        Tensors are pictures as `image_processor` makes them. The prior stays away from
        `negative_prior_prompt`, the decoder from `negative_prompt`.
        """
        if len(images_and_prompts) != len(weights) or not weights:
            raise InputError(
                f"{len(weights)} weights were given for {len(images_and_prompts)} prompts and pictures. Give "
                "one weight for each, and at least one of them.",
                parameter="weights",
            )
        options = {
            "num_inference_steps": num_inference_steps,
            "num_images_per_prompt": num_images_per_prompt,
            "generator": generator,
            "latents": latents,
            "negative_prompt": negative_prior_prompt,
            "guidance_scale": guidance_scale,
        }
        embeds = []
        for condition, weight in zip(images_and_prompts, weights, strict=True):
            if isinstance(condition, str):
                embeds.append(weight * self.start(condition, **options).result().image_embeds)
            else:
                embeds.append(weight * self._embedded(condition).repeat(num_images_per_prompt, 1))
        run: Any = self.start(negative_prompt, **options)
        if negative_prompt == "" and negative_prior_prompt is None:
            # The reference runs the prior here and drops the result, which uses up random numbers.
            run.use_up_random_numbers()
            negative = self.get_zero_embed(run.rows)
        else:
            made = run.result()
            negative = made.negative_image_embeds if negative_prompt == "" else made.image_embeds
        total = torch.stack(embeds).sum(dim=0)
        return PriorOutput(*(part if device is None else part.to(device) for part in (total, negative)))

    def _embedded(self, picture: Image.Image | Tensor) -> Tensor:
        if isinstance(picture, Image.Image):
            plain = plain_rgb(picture, "images_and_prompts")
            pixels: Any = self.part("image_processor")(plain, return_tensors="pt").pixel_values
        elif isinstance(picture, Tensor) and picture.ndim == 4:
            pixels = picture
        else:
            raise InputError(
                f"images_and_prompts holds a {type(picture).__name__}. Accepted are prompts, PIL pictures "
                "and tensors (1, 3, height, width) of the image processor.",
                parameter="images_and_prompts",
            )
        with self.using("image_encoder") as encoder:
            return encoder(pixels.to(self.device, encoder.dtype)).image_embeds

    @classmethod
    def sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """Accept a combined pipeline's folder too."""
        if f"{PREFIX}prior" not in index:
            return super().sources(checkpoint, index, given)
        part_of = {name: name.removeprefix(PREFIX) for name in index if name.startswith(PREFIX)}
        return [(checkpoint, named_parts(cls, index, given, lambda name: part_of.get(name, "")))]


class CombinedRun(Run):
    """One running call of a decoder with its prior. The prior runs before the decoder's first step."""

    def prepare(self) -> None:
        pipeline: Any = self.pipeline
        prior = pipeline.prior_pipe
        try:
            call = prior._make_call(_prior_arguments(self.call))
            check_call(call, prior.layout.multiple, prior.tensor_names)
            check_texts(call)
        except InputError as error:
            raise InputError(f"For the prior: {error}", parameter=error.parameter) from None
        super().prepare()

    def read(self, guided: bool) -> ImageEmbeds:
        """Return the prior's embeddings; they are drawn before anything else."""
        pipeline: Any = self.pipeline
        prior = pipeline.prior_pipe.start(**_prior_arguments(self.call, self.prompts))
        prior.cancelled = self.cancelled
        made = prior.result()
        return ImageEmbeds(made.image_embeds, made.negative_image_embeds)


def _prior_arguments(call: Call, count: int = 1) -> dict[str, Any]:
    """Return the arguments of the prior for a number of prompts."""

    def for_each(texts: str | Sequence[str] | None) -> Any:
        listed = as_list(texts)
        return listed * count if len(listed) == 1 else listed or None

    own: Any = call.own
    return {
        "prompt": for_each(call.prompt),
        "negative_prompt": for_each(call.negative_prompt),
        "num_images_per_prompt": call.num_images_per_prompt,
        "num_inference_steps": own.prior_num_inference_steps,
        "generator": call.generator,
        "latents": own.prior_latents,
        "guidance_scale": own.prior_guidance_scale,
        "callback_on_step_end": own.prior_callback_on_step_end,
        "callback_on_step_end_tensor_inputs": own.prior_callback_on_step_end_tensor_inputs,
    }


def _movq(self: Any) -> Any:
    """The autoencoder, which this family calls its movq."""
    return self.movq


def _set_movq(self: Any, movq: Any) -> None:
    self.movq = movq


MOVQ_AS_VAE: Any = property(_movq, _set_movq)


class Kandinsky22Combined(Pipeline):
    """Base of the decoders with their prior, whose parts have names that begin with "prior_"."""

    family = KANDINSKY_22
    decoder: ClassVar[type[Pipeline]]  # the pipeline class of the same task without a prior
    vae = MOVQ_AS_VAE
    movq_scale_factor = Pipeline.vae_scale_factor
    __call__ = signatures.kandinsky22_combined

    @property
    def prior_pipe(self) -> KandinskyV22PriorPipeline:
        """The prior as a pipeline of its own, with the same models."""
        parts = {name: getattr(self, PREFIX + name) for name in KandinskyV22PriorPipeline.component_names}
        prior = KandinskyV22PriorPipeline(**parts)
        prior.placement = Prefixed(self.placement, PREFIX)
        prior._progress_bar = self._progress_bar
        return prior

    @property
    def decoder_pipe(self) -> Pipeline:
        """The decoder as a pipeline of its own, with the same models."""
        return self.decoder.from_pipe(self)

    def _run(self, arguments: Mapping[str, Any], cache: Cache | None = None) -> CombinedRun:
        call = self._make_call(arguments)
        if isinstance(call.latents, Tensor) and call.latents.ndim == 2:  # the prior's, not the decoder's
            call = replace(call, latents=None, own=replace(call.own, prior_latents=call.latents))
        return CombinedRun(self, call, None)  # embeddings are random, so nothing is kept of them

    @classmethod
    def sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """Find the prior of a decoder's checkpoint by the name in its card."""
        own = named_parts(cls, index, given)
        if all(name in own or name in given for name in cls.component_names):
            return [(checkpoint, own)]
        names = checkpoint.card().get("prior")
        name = names[0] if isinstance(names, list) and names else names
        if not isinstance(name, str):
            raise CheckpointError(
                f"{checkpoint.name} is a decoder of Kandinsky 2.2, and its card (README.md) names no prior "
                "for it. A header with 'prior:' and the name of a repository is expected. Add it; or load "
                "the two separately, with KandinskyV22PriorPipeline and KandinskyV22Pipeline.",
                parameter="name",
            )
        prior = checkpoint.beside(name)
        renamed = named_parts(cls, prior.index(), given, lambda part: PREFIX + part)
        return [(checkpoint, own), (prior, renamed)]
