"""Stable Diffusion XL, base, inpainting and refiner: two text encoders and what the UNet is told of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.models.lora import scaled
from retouch.pipelines.latent_diffusion import LatentDiffusion
from retouch.pipelines.prompt_weights import levelled, plain, weighted_states
from retouch.pipelines.request import Request, argument
from retouch.pipelines.run import Run
from retouch.pipelines.text import layer_from_end, matched, tokenize
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.start import window
from retouch.schedulers.plan import Plan

Pair = tuple[int, int]

_SIZES = [
    f"{prefix}{name}"
    for prefix in ("", "negative_")
    for name in ("original_size", "crops_coords_top_left", "target_size")
]


@dataclass(frozen=True)
class XLRequest(Request):
    """A request with the inputs that only this family has."""

    prompt_2: str | Sequence[str] | None = argument(None, "For the second text encoder; None: as prompt.")
    negative_prompt_2: str | Sequence[str] | None = argument(
        None, "For the second text encoder; None: as the first."
    )
    pooled_prompt_embeds: Tensor | None = argument(None, "The pooled text that belongs to prompt_embeds.")
    negative_pooled_prompt_embeds: Tensor | None = argument(None, "Pooled text of negative_prompt_embeds.")
    denoising_start: float | None = argument(
        None, "Fraction of the schedule that an earlier stage has done; image is its latents."
    )
    denoising_end: float | None = argument(None, "Fraction of the schedule after which to hand over latents.")
    original_size: Pair | None = argument(
        None, "(height, width) the picture claims to come from; None: that which the model works at."
    )
    crops_coords_top_left: Pair = argument((0, 0), "(top, left) that the picture claims to be cropped at.")
    target_size: Pair | None = argument(
        None, "(height, width) the picture claims to be shown at; None: that which the model works at."
    )
    negative_original_size: Pair | None = argument(None, "As original_size, on the negative side.")
    negative_crops_coords_top_left: Pair | None = argument(
        None, "As crops_coords_top_left, on the negative side."
    )
    negative_target_size: Pair | None = argument(None, "As target_size, on the negative side.")
    aesthetic_score: float = argument(6.0, "Score the refiner is asked for.")
    negative_aesthetic_score: float = argument(2.5, "Score the refiner is asked to stay away from.")

    @property
    def starts_noisy(self) -> bool:
        return self.denoising_start is not None

    def check(self, size_factor: int, listenable: Any = ()) -> None:
        super().check(size_factor, listenable)
        for name in ("denoising_start", "denoising_end"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < 1):
                raise InputError(
                    f"{name}={value!r} is not between 0 and 1 (both excluded). Leave it out to run all steps."
                )
        start, end = self.denoising_start, self.denoising_end
        if start is not None and end is not None and start >= end:
            raise InputError(
                f"denoising_start={start} is not before denoising_end={end}. Swap or change them."
            )
        for prefix in ("", "negative_"):
            self._check_side(prefix)
        for name in _SIZES:
            value = getattr(self, name)
            is_pair = isinstance(value, Sequence) and [isinstance(side, Real) for side in value] == [True] * 2
            if not is_pair and (value is not None or name == "crops_coords_top_left"):
                raise InputError(f"{name}={value!r} is not a pair of numbers, the vertical one first.")
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"{name}={value!r} is not a finite number.")

    def _check_side(self, prefix: str) -> None:
        text, embeds, pooled = (
            getattr(self, prefix + name) for name in ("prompt_2", "prompt_embeds", "pooled_prompt_embeds")
        )
        if (embeds is None) != (pooled is None):
            raise InputError(
                f"{prefix}prompt_embeds and {prefix}pooled_prompt_embeds belong together, and one of "
                "them is missing. encode_prompt returns both."
            )
        if embeds is not None and not (isinstance(pooled, Tensor) and pooled.ndim == 2):
            raise InputError(
                f"{prefix}pooled_prompt_embeds is no tensor of (prompts, width). Take it from encode_prompt."
            )
        if embeds is not None and len(embeds) != len(pooled):
            raise InputError(
                f"{prefix}prompt_embeds holds {len(embeds)} prompts and {prefix}pooled_prompt_embeds "
                f"{len(pooled)}. They belong together; give both for the same prompts."
            )
        if text is None or isinstance(text, str):
            count = None
        elif isinstance(text, Sequence) and all(isinstance(part, str) for part in text):
            count = len(text)
        else:
            raise InputError(f"{prefix}prompt_2 is {text!r:.80}; it takes a string or a list of strings.")
        if text is not None and embeds is not None:
            raise InputError(
                f"Both {prefix}prompt_2 and {prefix}prompt_embeds were given; they say the same thing. Give "
                "one."
            )
        if count not in (None, self.prompts):
            raise InputError(
                f"{prefix}prompt_2 has {count} entries for {self.prompts} prompts. Give one for each."
            )


class StableDiffusionXL(LatentDiffusion):
    """The family; names.py gives it its three fronts."""

    component_names = (
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "scheduler",
        "image_encoder",
        "feature_extractor",
    )
    # The refiner has the second text encoder alone; given embeddings need neither.
    optional_components = (
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "image_encoder",
        "feature_extractor",
    )
    switches: ClassVar = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}
    listenable: ClassVar = {
        **LatentDiffusion.listenable,
        "add_text_embeds": ("added_cond_kwargs", "text_embeds"),
        "add_time_ids": ("added_cond_kwargs", "time_ids"),
    }
    heeds_force_upcast = True

    text_encoder_2: Any
    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool

    def part_of(self, plan: Plan, requested: int, request: Any) -> tuple[Plan, int]:
        start, end = request.denoising_start, request.denoising_end
        if start is None:
            plan, requested = super().part_of(plan, requested, request)
        if start is None and end is None:
            return plan, requested
        part = window(plan, start, end, int(self.scheduler.config.num_train_timesteps))
        return part, len(part)

    def condition(self, run: Run) -> Conditioning:
        """Text states, pooled text and size ids for both sides of the guidance."""
        request: Any = run.request
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            request.prompt,
            request.prompt_2,
            do_classifier_free_guidance=run.guidance.active,
            negative_prompt=request.negative_prompt,
            negative_prompt_2=request.negative_prompt_2,
            prompt_embeds=request.prompt_embeds,
            negative_prompt_embeds=request.negative_prompt_embeds,
            pooled_prompt_embeds=request.pooled_prompt_embeds,
            negative_pooled_prompt_embeds=request.negative_pooled_prompt_embeds,
            clip_skip=request.clip_skip,
            prompt_syntax=request.prompt_syntax,
        )
        distilled = self.guidance_input(run.rows, request.guidance_scale, positive)
        ids, negative_ids = self._size_ids(request, (run.pictures.height, run.pictures.width))

        def inputs(states: Tensor, text: Tensor, numbers: list[float]) -> dict[str, Any]:
            time_ids = torch.tensor([numbers], dtype=positive.dtype, device=self.device)
            self._check_width(text, time_ids)
            added = {"text_embeds": run.spread(text.to(self.device)), "time_ids": run.spread(time_ids)}
            return {"encoder_hidden_states": run.spread(states), "added_cond_kwargs": added, **distilled}

        sides = [inputs(positive, pooled, ids)]
        if negative is not None and negative_pooled is not None:
            sides.append(inputs(negative, negative_pooled, negative_ids))
        return self.shown(run, Conditioning(*sides))

    def _size_ids(self, request: Any, size: Pair) -> tuple[list[float], list[float]]:
        """The numbers that the UNet is told; the refiner gets a score in place of the target size."""
        original, target = request.original_size or size, request.target_size or size
        crop, negative_crop = request.crops_coords_top_left, request.negative_crops_coords_top_left
        sizes = (request.negative_original_size, request.negative_target_size)
        if negative_crop is None:
            # As the reference: a negative side of its own is not cropped.
            own_side = self.requires_aesthetics_score or (request.image is None and None not in sizes)
            negative_crop = (0, 0) if own_side else crop
        negative_original, negative_target = sizes[0] or original, sizes[1] or target
        last: Sequence[float] = target
        negative_last: Sequence[float] = negative_target
        if self.requires_aesthetics_score:
            last, negative_last = (request.aesthetic_score,), (request.negative_aesthetic_score,)
        return [*original, *crop, *last], [*negative_original, *negative_crop, *negative_last]

    def _check_width(self, pooled: Tensor, time_ids: Tensor) -> None:
        expected = self.unet.config.projection_class_embeddings_input_dim
        given = pooled.shape[-1] + time_ids.shape[-1] * self.unet.config.addition_time_embed_dim
        if given != expected:
            raise InputError(
                f"The UNet expects {expected} numbers of pooled text and sizes, and would get {given}. A "
                "refiner needs requires_aesthetics_score=True and a base model False; give it to "
                "from_pretrained, or look at the model_index.json."
            )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        prompt_2: str | Sequence[str] | None = None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        prompt_syntax: str | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Text states and pooled text: positive states, negative states, positive pooled, negative pooled."""
        if prompt_embeds is None or pooled_prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._read(
                prompt or "", prompt_2 or prompt or "", None, clip_skip, lora_scale, prompt_syntax
            )
        reader = self.unet if self.text_encoder_2 is None else self.text_encoder_2
        positive = prompt_embeds.to(self.device, reader.dtype)
        pooled, negative, negative_pooled = pooled_prompt_embeds, None, None
        if do_classifier_free_guidance:
            if negative_prompt_embeds is not None and negative_pooled_prompt_embeds is not None:
                negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
            elif negative_prompt is None and negative_prompt_2 is None and self.force_zeros_for_empty_prompt:
                negative, negative_pooled = torch.zeros_like(positive), torch.zeros_like(pooled)
            else:
                first = negative_prompt or ""
                negative, negative_pooled = self._read(
                    first, negative_prompt_2 or first, positive.shape[1], None, lora_scale, prompt_syntax
                )
            if prompt_syntax == "weighted" and negative.shape[1] != positive.shape[1]:
                nothing = self._read("", "", None, None, lora_scale, prompt_syntax)[0]
                positive, negative = levelled(positive, negative.to(positive), nothing.to(positive))
            negative, negative_pooled = matched(negative, positive), matched(negative_pooled, pooled)
        each = num_images_per_prompt
        wanted = (positive, negative, pooled, negative_pooled)
        return tuple(None if part is None else part.repeat_interleave(each, 0) for part in wanted)  # type: ignore[return-value]

    def _run_encoder(
        self, encoder: Any, ids: Tensor, mask: Tensor | None = None, *, back: int
    ) -> tuple[Tensor, Tensor]:
        """States `back` layers before the last, and what the encoder gives for the text as a whole."""
        hidden = None if mask is None else mask.to(self.device)
        output = encoder(ids.to(self.device), attention_mask=hidden, output_hidden_states=True)
        return layer_from_end(output.hidden_states, back), output[0]

    def _read(
        self,
        first: str | Sequence[str],
        second: str | Sequence[str],
        length: int | None,
        clip_skip: int | None,
        lora_scale: float | None,
        prompt_syntax: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States of one layer before the last of each encoder, side by side, and the second's pooled text."""
        if self.text_encoder_2 is None:
            raise InputError(
                "A text was given, but this pipeline was made without text_encoder_2. Give prompt_embeds, "
                "pooled_prompt_embeds and, for guidance, their negatives; or load the text encoders."
            )
        encoders = [("text_encoder", "tokenizer", first), ("text_encoder_2", "tokenizer_2", second)]
        if self.components["text_encoder"] is None:  # the refiner's only encoder reads the first prompt
            encoders = [("text_encoder_2", "tokenizer_2", first)]
        states, pooled = [], None
        for encoder_name, tokenizer_name, text in encoders:
            tokenizer = getattr(self, tokenizer_name)
            texts = [text] if isinstance(text, str) else text
            with self.placement.using(encoder_name) as encoder, scaled(lora_scale):
                run = partial(self._run_encoder, encoder, back=(clip_skip or 0) + 1)
                if prompt_syntax == "weighted":
                    states.append(weighted_states(texts, tokenizer, lambda *given, run=run: run(*given)[0]))
                    # The pooled text is one vector: it has no tokens to weigh, and its first chunk must do.
                    cut = tokenize(
                        tokenizer, [plain(text) for text in texts], tokenizer.model_max_length, tell=False
                    )
                    pooled = run(cut)[1]
                else:
                    layer, pooled = run(tokenize(tokenizer, texts, length or tokenizer.model_max_length))
                    states.append(layer)
        if len({len(state) for state in states}) > 1:
            longest = max(len(state) for state in states)
            states = [state.expand(longest, -1, -1) for state in states]
        assert pooled is not None
        return torch.cat(states, dim=-1), pooled
