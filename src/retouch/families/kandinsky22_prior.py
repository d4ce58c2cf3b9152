"""Kandinsky 2.2's prior: from prompts to the image embeddings that its decoder paints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retouch.families.call import Call, Task
from retouch.families.family import Family, Parts, Size
from retouch.families.latents import LatentLayout
from retouch.families.text import tokenize_with_mask
from retouch.sampling.conditioning import Conditioning


@dataclass(frozen=True)
class PriorCall(Call):
    """A call of the prior, which returns embeddings."""

    output_types: ClassVar[Sequence[str]] = ("pt", "np")


class Kandinsky22Prior(Family):
    """The family of Kandinsky 2.2's priors. Its latents are embeddings, one row for each picture."""

    name = "kandinsky22_prior"
    title = "Kandinsky 2.2 (prior)"
    components = ("prior", "image_encoder", "text_encoder", "tokenizer", "scheduler", "image_processor")
    denoiser = "prior"
    tensors: ClassVar = {
        "prompt_embeds": ("proj_embedding",),
        "text_encoder_hidden_states": ("encoder_hidden_states",),
        "text_mask": ("attention_mask",),
    }
    channel_tensors: ClassVar = {}
    mask_tensor = ""

    def layout(self, parts: Parts) -> LatentLayout:
        return LatentLayout(channels=int(parts.part("prior").config.embedding_dim), stride=1)

    def read(self, parts: Parts, call: Call, *, guided: bool) -> Sequence[Mapping[str, Tensor] | None]:
        """Return what the text encoder makes of the prompts, of the negative ones, and of empty texts."""
        texts, unwanted = as_list(call.prompt), negative_prompts(call)
        empty = [""] * len(texts) if guided and not unwanted else []
        return [_encoded(parts, group) if group else None for group in (texts, unwanted, empty)]

    def condition(
        self,
        parts: Parts,
        call: Call,
        read: Sequence[Mapping[str, Tensor] | None],
        *,
        rows: int,
        size: Size,
        task: Task,
    ) -> Conditioning:
        """Return the inputs. The rows of a negative prompt come behind those of the prompt."""
        each = call.num_images_per_prompt or 1

        def repeated(*groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                key: torch.cat([group[key].repeat_interleave(each, 0) for group in groups])
                for key in groups[0]
            }

        texts, unwanted, empty = read
        assert texts is not None
        if unwanted is not None:
            return Conditioning(repeated(texts, unwanted), repeated(unwanted, unwanted))
        return Conditioning(repeated(texts), None if empty is None else repeated(empty))


KANDINSKY_22_PRIOR = Kandinsky22Prior()


def as_list(prompts: str | Sequence[str] | None) -> list[str]:
    """Return prompts as a list."""
    return [prompts] if isinstance(prompts, str) else list(prompts or ())


def negative_prompts(call: Call) -> list[str]:
    """Return a negative prompt for each prompt, or none."""
    unwanted = as_list(call.negative_prompt)
    return unwanted * len(as_list(call.prompt)) if len(unwanted) == 1 else unwanted


def _encoded(parts: Parts, texts: Sequence[str]) -> dict[str, Tensor]:
    tokenizer = parts.part("tokenizer")
    ids, is_text = tokenize_with_mask(tokenizer, texts, tokenizer.model_max_length)
    with parts.using("text_encoder") as encoder:
        seen = encoder(ids.to(parts.device))
    return {
        "proj_embedding": seen.text_embeds,
        "encoder_hidden_states": seen.last_hidden_state,
        "attention_mask": is_text.bool().to(parts.device),
    }
