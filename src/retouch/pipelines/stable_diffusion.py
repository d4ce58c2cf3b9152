"""Stable Diffusion 1.x and 2.x: how it reads prompts, and its safety checker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.models.lora import scaled
from retouch.pipelines.latent_diffusion import LatentDiffusion
from retouch.pipelines.prompt_weights import levelled, weighted_states
from retouch.pipelines.run import Run
from retouch.pipelines.stored import PartNames
from retouch.pipelines.text import encode, matched, tokenize
from retouch.sampling.conditioning import Conditioning


class StableDiffusion(LatentDiffusion):
    """The family; names.py gives it its three fronts."""

    component_names = (
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    )
    reports_safety = True
    optional_components = ("safety_checker", "feature_extractor", "image_encoder")

    # Settings that early checkpoints left wrong, and what they must be. Which front mends which is the
    # reference's choice; its pictures depend on it.
    scheduler_repairs: ClassVar[Mapping[str, Any]] = {}

    text_encoder: Any
    tokenizer: Any
    unet: Any
    safety_checker: Any
    feature_extractor: Any

    def __init__(self, *, requires_safety_checker: bool | None = None, **components: Any) -> None:
        super().__init__(**components)
        self.scheduler = self._repaired(self.scheduler)

    def _repaired(self, scheduler: Any) -> Any:
        wrong = {
            key: value
            for key, value in self.scheduler_repairs.items()
            if key in scheduler.config and scheduler.config[key] != value
        }
        if not wrong:
            return scheduler
        changes = ", ".join(f"{key} from {scheduler.config[key]} to {value}" for key, value in wrong.items())
        warnings.warn(
            "The scheduler's settings are of an early format that Stable Diffusion was not trained with; "
            f"changed {changes}. Correct scheduler_config.json to be rid of this message, or set "
            "pipeline.scheduler afterwards to use other settings.",
            stacklevel=4,
        )
        return type(scheduler).from_config(scheduler.config, **wrong)

    @classmethod
    def _component_arguments(cls, components: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(components)
        given.pop("requires_safety_checker", None)
        # Unasked, the checker stays out: it costs 1.2 GB, and its objections are only reported anyway.
        if given.get("safety_checker") is True:
            del given["safety_checker"]
        elif given.setdefault("safety_checker", None) is None:
            given.setdefault("feature_extractor", None)
        given.setdefault("image_encoder", None)
        return super()._component_arguments(given)

    @classmethod
    def _named(
        cls, index: Mapping[str, Any], given: Collection[str], rename: Callable[[str], str] = str
    ) -> PartNames:
        found = super()._named(index, given, rename)
        if "safety_checker" not in (*given, *found):  # asked for, then
            raise InputError(
                "safety_checker=True asks for the one in the checkpoint, and this checkpoint has none. Pass "
                "the safety checker of another pipeline, with its feature_extractor, or leave it out."
            )
        return found

    def condition(self, run: Run) -> Conditioning:
        """Text states for both sides of the guidance."""
        request = run.request
        positive, negative = self.encode_prompt(
            request.prompt,
            num_images_per_prompt=1,
            do_classifier_free_guidance=run.guidance.active,
            negative_prompt=request.negative_prompt,
            prompt_embeds=request.prompt_embeds,
            negative_prompt_embeds=request.negative_prompt_embeds,
            clip_skip=request.clip_skip,
            prompt_syntax=request.prompt_syntax,
        )
        inputs = {
            "encoder_hidden_states": run.spread(positive),
            **self.guidance_input(run.rows, request.guidance_scale, positive),
        }
        told = Conditioning(
            inputs, None if negative is None else {**inputs, "encoder_hidden_states": run.spread(negative)}
        )
        return self.shown(run, told)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        prompt_syntax: str | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Text states of the prompts and, with guidance, of the negative ones (an empty text if none)."""
        with self.placement.using("text_encoder") as encoder, scaled(lora_scale):

            def states(ids: Tensor, mask: Tensor | None, skipped: int | None = None) -> Tensor:
                hidden = None if mask is None else mask.to(self.device)
                return encode(encoder, ids.to(self.device), skipped, hidden)

            def read(texts: Sequence[str], length: int, skipped: int | None = None) -> Tensor:
                if prompt_syntax == "weighted":
                    return weighted_states(texts, self.tokenizer, partial(states, skipped=skipped))
                return states(tokenize(self.tokenizer, texts, length), None, skipped)

            if prompt_embeds is None:
                prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
                prompt_embeds = read(prompts, self.tokenizer.model_max_length, clip_skip)
            positive = prompt_embeds.to(self.device, encoder.dtype)
            negative = None
            if do_classifier_free_guidance:
                negative = negative_prompt_embeds
                if negative is None:
                    against = negative_prompt or ""
                    negative = read([against] if isinstance(against, str) else against, positive.shape[1])
                if prompt_syntax == "weighted" and negative.shape[1] != positive.shape[1]:
                    positive, negative = levelled(positive, negative, read([""], 0))
                negative = matched(negative, positive)
        rows = (positive, negative)
        return tuple(  # type: ignore[return-value]
            None if part is None else part.repeat_interleave(num_images_per_prompt, 0) for part in rows
        )

    def flag_unsafe(self, pixels: Tensor) -> list[bool] | None:
        """What the safety checker says of each picture. It changes none of them."""
        if self.safety_checker is None:
            return None
        pictures = self.image_processor.postprocess(pixels, output_type="pil")
        seen = self.feature_extractor(pictures, return_tensors="pt").pixel_values
        with self.placement.using("safety_checker") as checker:
            flags: list[bool] = checker(seen.to(self.device, checker.dtype))
            return flags
