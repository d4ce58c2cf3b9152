"""Stable Diffusion 1.x and 2.x: prompts, scheduler settings of early checkpoints, the safety checker."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.call import Call, Task
from retouch.families.family import Parts, Size
from retouch.families.latent_diffusion import LatentDiffusion, guidance_inputs
from retouch.families.prompt_weights import padded_to_match, weighted_states
from retouch.families.text import encode, match_rows, tokenize
from retouch.models.lora import rescaled
from retouch.sampling.conditioning import Conditioning, spread

# Settings that early checkpoints left wrong, and what they must be. The reference mends them for each task in
# its own way, and its pictures depend on that.
_REPAIRS: Mapping[str, Mapping[str, Any]] = {
    "text2image": {"steps_offset": 1, "clip_sample": False},
    "image2image": {"steps_offset": 1, "clip_sample": False},
    "inpaint": {"steps_offset": 1, "skip_prk_steps": True},
}


@dataclass(frozen=True)
class Texts:
    """Text states of a call: (prompts, tokens, width); no negative ones without guidance."""

    positive: Tensor
    negative: Tensor | None


class StableDiffusion(LatentDiffusion):
    """The family of Stable Diffusion 1.x and 2.x."""

    name = "stable_diffusion"
    title = "Stable Diffusion"
    components = (
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    )
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    reports_safety = True
    ignored_settings = ("requires_safety_checker",)

    def given_components(self, components: Mapping[str, Any]) -> dict[str, Any]:
        """Leave the safety checker out unless it is asked for: it takes 1.2 GB, and is only reported."""
        given = dict(components)
        given.pop("requires_safety_checker", None)
        if given.get("safety_checker") is True:
            del given["safety_checker"]
        elif given.setdefault("safety_checker", None) is None:
            given.setdefault("feature_extractor", None)
        given.setdefault("image_encoder", None)
        return given

    def check_found(self, names: Sequence[str]) -> None:
        if "safety_checker" not in names:  # the caller asked for it
            raise InputError(
                "safety_checker=True asks for the one in the checkpoint, and this checkpoint has none. Pass "
                "the safety checker of another pipeline, with its feature_extractor, or leave it out.",
                parameter="safety_checker",
            )

    def repair(self, parts: Parts, scheduler: Any, task: Task) -> Any:
        wrong = {
            key: value
            for key, value in _REPAIRS[task.name].items()
            if key in scheduler.config and scheduler.config[key] != value
        }
        if not wrong:
            return scheduler
        changes = ", ".join(f"{key} from {scheduler.config[key]} to {value}" for key, value in wrong.items())
        warnings.warn(
            "The scheduler's settings are of an early format that Stable Diffusion was not trained with, so "
            f"they were changed: {changes}. Correct scheduler_config.json to silence this, or set "
            "pipeline.scheduler afterwards to use other settings.",
            stacklevel=4,
        )
        return type(scheduler).from_config(scheduler.config, **wrong)

    def read(self, parts: Parts, call: Call, *, guided: bool) -> Texts:
        positive, negative = encode_prompt(
            parts,
            call.prompt,
            do_classifier_free_guidance=guided,
            negative_prompt=call.negative_prompt,
            prompt_embeds=call.prompt_embeds,
            negative_prompt_embeds=call.negative_prompt_embeds,
            lora_scale=call.lora_scale,
            clip_skip=call.clip_skip,
            prompt_syntax=call.prompt_syntax,
        )
        return Texts(positive, negative)

    def condition(
        self, parts: Parts, call: Call, read: Texts, *, rows: int, size: Size, task: Task
    ) -> Conditioning:
        shared = guidance_inputs(parts, rows, call.guidance_scale, read.positive)

        def inputs(states: Tensor) -> dict[str, Any]:
            return {"encoder_hidden_states": spread(states, rows), **shared}

        return Conditioning(inputs(read.positive), None if read.negative is None else inputs(read.negative))

    def flag_unsafe(self, parts: Parts, pixels: Tensor, processor: Any) -> list[bool] | None:
        """Return what the safety checker says of each picture. It changes none of them."""
        if parts.part("safety_checker") is None:
            return None
        pictures = processor.postprocess(pixels, output_type="pil")
        seen = parts.part("feature_extractor")(pictures, return_tensors="pt").pixel_values
        with parts.using("safety_checker") as checker:
            flags: list[bool] = checker(seen.to(parts.device, checker.dtype))
            return flags


@torch.no_grad()
def encode_prompt(
    self: Any,
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
    """Return text states of the prompts and, with guidance, of the negative ones (an empty text if none)."""
    tokenizer = self.part("tokenizer")
    with self.using("text_encoder") as placed:
        encoder = rescaled(placed, 1.0 if lora_scale is None else lora_scale)

        def states(ids: Tensor, mask: Tensor | None, skipped: int | None = None) -> Tensor:
            visible = None if mask is None else mask.to(self.device)
            return encode(encoder, ids.to(self.device), skipped, visible)

        def read(texts: Sequence[str], length: int, skipped: int | None = None) -> Tensor:
            if prompt_syntax == "weighted":
                return weighted_states(texts, tokenizer, partial(states, skipped=skipped))
            return states(tokenize(tokenizer, texts, length), None, skipped)

        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
            prompt_embeds = read(prompts, tokenizer.model_max_length, clip_skip)
        positive = prompt_embeds.to(self.device, encoder.dtype)
        negative = None
        if do_classifier_free_guidance:
            negative = negative_prompt_embeds
            if negative is None:
                against = negative_prompt or ""
                negative = read([against] if isinstance(against, str) else against, positive.shape[1])
            if prompt_syntax == "weighted" and negative.shape[1] != positive.shape[1]:
                positive, negative = padded_to_match(positive, negative, read([""], 0))
            negative = match_rows(negative, positive)
    return tuple(  # type: ignore[return-value]
        None if part is None else part.repeat_interleave(num_images_per_prompt, 0)
        for part in (positive, negative)
    )


STABLE_DIFFUSION = StableDiffusion()
