"""Kandinsky 2.2's prior: from prompts and pictures to the image embeddings that its decoder paints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from retouch.checkpoints.locate import Checkpoint
from retouch.errors import InputError
from retouch.images.modes import plain_rgb
from retouch.pipelines.pipeline import BasePipeline
from retouch.pipelines.request import Request, Task
from retouch.pipelines.run import Output, Run
from retouch.pipelines.stored import PartNames
from retouch.pipelines.text import tokenize_with_mask
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.region import Region
from retouch.sampling.start import first_latents

PREFIX = "prior_"  # of the prior's parts in a combined pipeline


@dataclass
class PriorOutput(Output):
    """Image embeddings, and those to push away from, a row for each picture."""

    image_embeds: Any
    negative_image_embeds: Any

    def to_tuple(self) -> tuple[Any, ...]:
        return self.image_embeds, self.negative_image_embeds


@dataclass(frozen=True)
class PriorRequest(Request):
    """A request for embeddings."""

    output_types: ClassVar[Sequence[str]] = ("pt", "np")


class PriorRun(Run):
    """A call of the prior. A negative prompt's embedding is made like the prompt's, in rows behind its."""

    pipeline: KandinskyV22PriorPipeline

    def __init__(self, pipeline: KandinskyV22PriorPipeline, task: Task, request: Request) -> None:
        super().__init__(pipeline, task, request)
        self.texts, self.unwanted = _listed(request.prompt), _listed(request.negative_prompt)
        if len(self.unwanted) == 1:
            self.unwanted *= len(self.texts)
        pictures = len(self.texts) * (request.num_images_per_prompt or 1)
        self.check_generators(pictures)
        sides = 2 if self.unwanted else 1
        self.rows = sides * pictures
        if isinstance(self.generator, Sequence):
            self.generator = [*self.generator] * sides
        if request.latents is not None and tuple(request.latents.shape) != self._shape:
            raise InputError(
                f"latents has the shape {tuple(request.latents.shape)}, but this call of the prior makes "
                f"{self._shape}: a row for each picture, and with a negative prompt as many again."
            )

    @property
    def _shape(self) -> tuple[int, int]:
        return self.rows, self.pipeline.prior.config.embedding_dim

    def begin(self, plan: Any) -> tuple[Tensor, None, Region | None]:
        given = self.request.latents
        noise = self.draw(self._shape) if given is None else given.to(self.pipeline.device, self.dtype)
        return first_latents(plan, noise), None, None

    def output(self) -> PriorOutput:
        assert self._latents is not None
        pipeline = self.pipeline
        with pipeline.placement.using("prior") as prior:
            embeds = prior.post_process_latents(self._latents)
        if self.unwanted:
            positive, negative = embeds.chunk(2)
        else:
            positive, negative = embeds, pipeline.get_zero_embed(len(embeds))
        if self.request.output_type == "np":
            return PriorOutput(positive.float().cpu().numpy(), negative.float().cpu().numpy())
        return PriorOutput(positive, negative)

    def use_up_random_numbers(self) -> None:
        """Draw what a whole run would, without the model."""
        self.dtype = self.pipeline.text_encoder.dtype
        plan, _ = self._plan()
        latents, _, _ = self.begin(plan)
        for step in plan:
            latents = plan.advance(latents, step, latents)


def _listed(prompts: str | Sequence[str] | None) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts or ())


class KandinskyV22PriorPipeline(BasePipeline):
    """Image embeddings from prompts."""

    component_names = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    denoiser = "prior"
    listenable: ClassVar = {
        "prompt_embeds": ("proj_embedding",),
        "text_encoder_hidden_states": ("encoder_hidden_states",),
        "text_mask": ("attention_mask",),
    }
    task = Task(
        "the prior",
        [
            *("prompt", "negative_prompt", "num_images_per_prompt", "num_inference_steps", "generator"),
            *("latents", "guidance_scale", "output_type", "return_dict"),
            *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
        ],
        defaults={"num_inference_steps": 25, "guidance_scale": 4.0, "output_type": "pt"},
        request=PriorRequest,
        summary="Make image embeddings; returns a PriorOutput.",
        makes_pictures=False,
    )

    prior: Any
    image_encoder: Any
    text_encoder: Any
    tokenizer: Any
    image_processor: Any

    def start(self, *args: Any, **kwargs: Any) -> PriorRun:
        return PriorRun(self, self.task, self.task.bind(args, kwargs))

    def condition(self, run: PriorRun) -> Conditioning:
        each = run.request.num_images_per_prompt or 1

        def rows(*sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                key: torch.cat([side[key].repeat_interleave(each, 0) for side in sides]) for key in sides[0]
            }

        texts = self._read(run.texts)
        if run.unwanted:
            away = self._read(run.unwanted)
            return Conditioning(rows(texts, away), rows(away, away))
        empty = self._read([""] * len(run.texts)) if run.guidance.active else None
        return Conditioning(rows(texts), None if empty is None else rows(empty))

    def _read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        ids, is_text = tokenize_with_mask(self.tokenizer, texts, self.tokenizer.model_max_length)
        with self.placement.using("text_encoder") as encoder:
            seen = encoder(ids.to(self.device))
        return {
            "proj_embedding": seen.text_embeds,
            "encoder_hidden_states": seen.last_hidden_state,
            "attention_mask": is_text.bool().to(self.device),
        }

    @torch.no_grad()
    def get_zero_embed(self, batch_size: int = 1, device: Any = None) -> Tensor:
        """The embedding of a picture without content: what guidance pushes away from by default."""
        with self.placement.using("image_encoder") as encoder:
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
        """The weighted sum of the embeddings of prompts and pictures.

        Tensors are pictures as `image_processor` makes them. `negative_prior_prompt` is what the prior stays
        away from, `negative_prompt` what the decoder shall stay away from.
        """
        if len(images_and_prompts) != len(weights) or not weights:
            raise InputError(
                f"{len(weights)} weights were given for {len(images_and_prompts)} prompts and pictures. Give "
                "one weight for each, and at least one of them."
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
                embeds.append(weight * self(condition, **options).image_embeds)
            else:
                embeds.append(weight * self._embedded(condition).repeat(num_images_per_prompt, 1))
        run = self.start(negative_prompt, **options)
        if negative_prompt == "" and negative_prior_prompt is None:
            # The reference runs the prior here for nothing, which uses up random numbers.
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
            pixels: Any = self.image_processor(plain, return_tensors="pt").pixel_values
        elif isinstance(picture, Tensor) and picture.ndim == 4:
            pixels = picture
        else:
            raise InputError(
                f"images_and_prompts holds a {type(picture).__name__}; it takes prompts, PIL pictures and "
                "tensors (1, 3, height, width) of the image processor."
            )
        with self.placement.using("image_encoder") as encoder:
            return encoder(pixels.to(self.device, encoder.dtype)).image_embeds

    @classmethod
    def _sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """A combined pipeline's folder will do, too."""
        if f"{PREFIX}prior" not in index:
            return super()._sources(checkpoint, index, given)
        part_of = {name: name.removeprefix(PREFIX) for name in index if name.startswith(PREFIX)}
        return [(checkpoint, cls._named(index, given, lambda name: part_of.get(name, "")))]
