"""Stable Diffusion XL, base, inpainting and refiner: two text encoders, and the picture's sizes as
conditioning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.call import Arguments, Call, Task, argument, check_text, require_finite
from retouch.families.family import Parts, Size
from retouch.families.latent_diffusion import LatentDiffusion, guidance_inputs
from retouch.families.prompt_weights import padded_to_match, plain, weighted_states
from retouch.families.text import layer_from_end, match_rows, tokenize
from retouch.models.lora import rescaled
from retouch.sampling.conditioning import Conditioning, spread
from retouch.sampling.start import shorten, window
from retouch.schedulers.plan import Plan

_SIZES = [
    f"{prefix}{name}"
    for prefix in ("", "negative_")
    for name in ("original_size", "crops_coords_top_left", "target_size")
]


@dataclass(frozen=True)
class XLArguments(Arguments):
    """The arguments that only this family has."""

    prompt_2: str | Sequence[str] | None = argument(None, "For the second text encoder. None: as prompt.")
    negative_prompt_2: str | Sequence[str] | None = argument(
        None, "For the second text encoder. None: as negative_prompt."
    )
    pooled_prompt_embeds: Tensor | None = argument(None, "The pooled text that belongs to prompt_embeds.")
    negative_pooled_prompt_embeds: Tensor | None = argument(None, "Pooled text of negative_prompt_embeds.")
    denoising_start: float | None = argument(
        None, "Fraction of the schedule that an earlier stage has done; image holds its latents."
    )
    denoising_end: float | None = argument(None, "Fraction of the schedule after which to hand over latents.")
    original_size: Size | None = argument(
        None, "(height, width) that the picture claims to come from. None: the working size."
    )
    crops_coords_top_left: Size = argument((0, 0), "(top, left) where the picture claims to be cropped.")
    target_size: Size | None = argument(
        None, "(height, width) that the picture claims to be shown at. None: the working size."
    )
    negative_original_size: Size | None = argument(None, "As original_size, in the negative half.")
    negative_crops_coords_top_left: Size | None = argument(
        None, "As crops_coords_top_left, in the negative half."
    )
    negative_target_size: Size | None = argument(None, "As target_size, in the negative half.")
    aesthetic_score: float = argument(6.0, "Score that the refiner aims for.")
    negative_aesthetic_score: float = argument(2.5, "Score that the refiner stays away from.")


@dataclass(frozen=True)
class Texts:
    """Text states (prompts, tokens, width) and pooled text (prompts, width) of a call."""

    positive: Tensor
    negative: Tensor | None
    pooled: Tensor
    negative_pooled: Tensor | None


class StableDiffusionXL(LatentDiffusion):
    """The family of Stable Diffusion XL."""

    name = "stable_diffusion_xl"
    title = "Stable Diffusion XL"
    components = (
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
    # The refiner has only the second text encoder; given embeddings need neither.
    optional = (
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "image_encoder",
        "feature_extractor",
    )
    switches: ClassVar = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}
    tensors: ClassVar = {
        **LatentDiffusion.tensors,
        "add_text_embeds": ("added_cond_kwargs", "text_embeds"),
        "add_time_ids": ("added_cond_kwargs", "time_ids"),
    }
    arguments = XLArguments
    honours_force_upcast = True

    def check(self, parts: Parts, call: Call, task: Task) -> None:
        super().check(parts, call, task)
        own: XLArguments = call.own
        for name in ("denoising_start", "denoising_end"):
            value = getattr(own, name)
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < 1):
                raise InputError(
                    f"{name}={value!r} is not between 0 and 1 (both excluded). Leave it out to run all "
                    f"steps.",
                    parameter=name,
                )
        start, end = own.denoising_start, own.denoising_end
        if start is not None and end is not None and start >= end:
            raise InputError(
                f"denoising_start={start} is not before denoising_end={end}. Swap or change them.",
                parameter="denoising_start",
            )
        for prefix in ("", "negative_"):
            _check_half(call, prefix)
        for name in _SIZES:
            value = getattr(own, name)
            is_pair = isinstance(value, Sequence) and [isinstance(side, Real) for side in value] == [True] * 2
            if not is_pair and (value is not None or name == "crops_coords_top_left"):
                raise InputError(
                    f"{name}={value!r} is not a pair of numbers, the vertical one first.", parameter=name
                )
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            require_finite(name, getattr(own, name))

    def starts_noisy(self, call: Call) -> bool:
        return call.own.denoising_start is not None

    def section(self, parts: Parts, plan: Plan, requested: int, call: Call) -> tuple[Plan, int]:
        start, end = call.own.denoising_start, call.own.denoising_end
        if start is None and call.image is not None:
            plan, requested = shorten(plan, requested, call.strength)
        if start is None and end is None:
            return plan, requested
        part = window(plan, start, end, int(parts.part("scheduler").config.num_train_timesteps))
        return part, len(part)

    def read(self, parts: Parts, call: Call, *, guided: bool) -> Texts:
        own: XLArguments = call.own
        return Texts(
            *encode_prompt(
                parts,
                call.prompt,
                own.prompt_2,
                do_classifier_free_guidance=guided,
                negative_prompt=call.negative_prompt,
                negative_prompt_2=own.negative_prompt_2,
                prompt_embeds=call.prompt_embeds,
                negative_prompt_embeds=call.negative_prompt_embeds,
                pooled_prompt_embeds=own.pooled_prompt_embeds,
                negative_pooled_prompt_embeds=own.negative_pooled_prompt_embeds,
                lora_scale=call.lora_scale,
                clip_skip=call.clip_skip,
                prompt_syntax=call.prompt_syntax,
            )
        )

    def condition(
        self, parts: Parts, call: Call, read: Texts, *, rows: int, size: Size, task: Task
    ) -> Conditioning:
        distilled = guidance_inputs(parts, rows, call.guidance_scale, read.positive)
        settings: Any = parts  # switches of the checkpoint are attributes of the pipeline
        has_score = bool(settings.requires_aesthetics_score)
        ids, negative_ids = _size_ids(call.own, size, has_score, is_text2image=call.image is None)

        def inputs(states: Tensor, pooled: Tensor, numbers: list[float]) -> dict[str, Any]:
            time_ids = torch.tensor([numbers], dtype=read.positive.dtype, device=parts.device)
            _require_projection_width(parts.part("unet"), pooled, time_ids)
            added = {"text_embeds": spread(pooled.to(parts.device), rows), "time_ids": spread(time_ids, rows)}
            return {"encoder_hidden_states": spread(states, rows), "added_cond_kwargs": added, **distilled}

        halves = [inputs(read.positive, read.pooled, ids)]
        if read.negative is not None and read.negative_pooled is not None:
            halves.append(inputs(read.negative, read.negative_pooled, negative_ids))
        return Conditioning(*halves)


STABLE_DIFFUSION_XL = StableDiffusionXL()


def _check_half(call: Call, prefix: str) -> None:
    """Check the prompts and embeddings of the positive half, or of the negative one with "negative_"."""
    own: XLArguments = call.own
    embeds = getattr(call, f"{prefix}prompt_embeds")
    text, pooled = getattr(own, f"{prefix}prompt_2"), getattr(own, f"{prefix}pooled_prompt_embeds")
    if (embeds is None) != (pooled is None):
        raise InputError(
            f"{prefix}prompt_embeds and {prefix}pooled_prompt_embeds belong together, and one of them is "
            "missing. encode_prompt returns both.",
            parameter=f"{prefix}pooled_prompt_embeds",
        )
    if embeds is not None and not (isinstance(pooled, Tensor) and pooled.ndim == 2):
        raise InputError(
            f"{prefix}pooled_prompt_embeds is not a tensor of (prompts, width). Take it from encode_prompt.",
            parameter=f"{prefix}pooled_prompt_embeds",
        )
    if embeds is not None and len(embeds) != len(pooled):
        raise InputError(
            f"{prefix}prompt_embeds holds {len(embeds)} prompts and {prefix}pooled_prompt_embeds "
            f"{len(pooled)}. They belong together; give both for the same prompts.",
            parameter=f"{prefix}pooled_prompt_embeds",
        )
    check_text(f"{prefix}prompt_2", text)
    if text is not None and embeds is not None:
        raise InputError(
            f"Both {prefix}prompt_2 and {prefix}prompt_embeds were given, which mean the same. Give one.",
            parameter=f"{prefix}prompt_2",
        )
    count = None if text is None or isinstance(text, str) else len(text)
    if count not in (None, call.prompts):
        raise InputError(
            f"{prefix}prompt_2 has {count} entries for {call.prompts} prompts. Give one for each.",
            parameter=f"{prefix}prompt_2",
        )


def _size_ids(
    own: XLArguments, size: Size, has_score: bool, *, is_text2image: bool
) -> tuple[list[float], list[float]]:
    """Return the size conditioning of both halves; a refiner takes a score in place of the target size."""
    original, target = own.original_size or size, own.target_size or size
    crop, negative_crop = own.crops_coords_top_left, own.negative_crops_coords_top_left
    sizes = (own.negative_original_size, own.negative_target_size)
    if negative_crop is None:
        # As the reference: a negative half with sizes of its own is not cropped.
        is_separate = has_score or (is_text2image and None not in sizes)
        negative_crop = (0, 0) if is_separate else crop
    negative_original, negative_target = sizes[0] or original, sizes[1] or target
    last: Sequence[float] = target
    negative_last: Sequence[float] = negative_target
    if has_score:
        last, negative_last = (own.aesthetic_score,), (own.negative_aesthetic_score,)
    return [*original, *crop, *last], [*negative_original, *negative_crop, *negative_last]


def _require_projection_width(unet: Any, pooled: Tensor, time_ids: Tensor) -> None:
    expected = unet.config.projection_class_embeddings_input_dim
    given = pooled.shape[-1] + time_ids.shape[-1] * unet.config.addition_time_embed_dim
    if given != expected:
        raise InputError(
            f"The UNet expects {expected} numbers of pooled text and sizes, and would get {given}. A refiner "
            "needs requires_aesthetics_score=True and a base model False; give it to from_pretrained, or "
            "look at the model_index.json.",
            parameter="requires_aesthetics_score",
        )


@torch.no_grad()
def encode_prompt(
    self: Any,
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
    """Return positive states, negative states, positive pooled text and negative pooled text."""
    read = partial(
        _read_both, self, lora_scale=1.0 if lora_scale is None else lora_scale, syntax=prompt_syntax
    )
    if prompt_embeds is None or pooled_prompt_embeds is None:
        prompt_embeds, pooled_prompt_embeds = read(
            prompt or "", prompt_2 or prompt or "", clip_skip=clip_skip
        )
    reader = self.part("text_encoder_2") or self.part("unet")
    positive = prompt_embeds.to(self.device, reader.dtype)
    pooled, negative, negative_pooled = pooled_prompt_embeds, None, None
    if do_classifier_free_guidance:
        if negative_prompt_embeds is not None and negative_pooled_prompt_embeds is not None:
            negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
        elif negative_prompt is None and negative_prompt_2 is None and self.force_zeros_for_empty_prompt:
            negative, negative_pooled = torch.zeros_like(positive), torch.zeros_like(pooled)
        else:
            first = negative_prompt or ""
            negative, negative_pooled = read(first, negative_prompt_2 or first, length=positive.shape[1])
        if prompt_syntax == "weighted" and negative.shape[1] != positive.shape[1]:
            empty = read("", "")[0]
            positive, negative = padded_to_match(positive, negative.to(positive), empty.to(positive))
        negative, negative_pooled = match_rows(negative, positive), match_rows(negative_pooled, pooled)
    wanted = (positive, negative, pooled, negative_pooled)
    return tuple(  # type: ignore[return-value]
        None if part is None else part.repeat_interleave(num_images_per_prompt, 0) for part in wanted
    )


def _read_both(
    parts: Parts,
    first: str | Sequence[str],
    second: str | Sequence[str],
    *,
    lora_scale: float,
    syntax: str | None,
    length: int | None = None,
    clip_skip: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the states of both encoders side by side, and the second one's pooled text.

    The states come from one layer before the last, or as many more before it as `clip_skip` says.
    """
    if parts.part("text_encoder_2") is None:
        raise InputError(
            "A text was given, but this pipeline was made without text_encoder_2. Give prompt_embeds, "
            "pooled_prompt_embeds and, for guidance, their negatives; or load the text encoders.",
            parameter="prompt",
        )
    encoders = [("text_encoder", "tokenizer", first), ("text_encoder_2", "tokenizer_2", second)]
    if parts.part("text_encoder") is None:  # the refiner's only encoder reads the first prompt
        encoders = [("text_encoder_2", "tokenizer_2", first)]
    states, pooled = [], None
    for encoder_name, tokenizer_name, text in encoders:
        tokenizer = parts.part(tokenizer_name)
        texts = [text] if isinstance(text, str) else text
        with parts.using(encoder_name) as placed:
            encoder = rescaled(placed, lora_scale)
            run = partial(_run_encoder, encoder, parts.device, back=(clip_skip or 0) + 1)
            if syntax == "weighted":
                states.append(weighted_states(texts, tokenizer, lambda *given, run=run: run(*given)[0]))
                # The pooled text is one vector without tokens to weigh, made from the first chunk.
                cut = tokenize(
                    tokenizer, [plain(text) for text in texts], tokenizer.model_max_length, warn=False
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


def _run_encoder(
    encoder: Any, device: torch.device, ids: Tensor, mask: Tensor | None = None, *, back: int
) -> tuple[Tensor, Tensor]:
    """Return the states `back` layers before the last, and the encoder's pooled text."""
    visible = None if mask is None else mask.to(device)
    output = encoder(ids.to(device), attention_mask=visible, output_hidden_states=True)
    return layer_from_end(output.hidden_states, back), output[0]
