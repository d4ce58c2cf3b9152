"""Prompts to text states, by CLIP's tokenizer and text encoder from transformers."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retouch.errors import InputError

# A fast tokenizer keeps its padding and truncation as state, and refuses a second thread at the same time.
tokenizing = threading.Lock()


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int, *, warn: bool = True) -> Tensor:
    """Return token ids, padded and cut to `length`. A warning names the words that were cut off."""
    return tokenize_with_mask(tokenizer, prompts, length, warn=warn)[0]


def tokenize_with_mask(
    tokenizer: Any, prompts: Sequence[str], length: int, *, warn: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the same token ids, and a mask with 1 at the tokens that are not padding."""
    if length > tokenizer.model_max_length:
        raise InputError(
            f"prompt_embeds holds {length} tokens, and the text encoder reads {tokenizer.model_max_length}, "
            "so no negative half of that length can be made. Give negative_prompt_embeds of the same length, "
            "or guidance_scale=1.",
            parameter="prompt_embeds",
        )
    with tokenizing:
        prompts = [expanded(tokenizer, prompt) for prompt in prompts]
        found = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        whole = tokenizer(prompts, truncation=False, verbose=False).input_ids
        lost = [row[length - 1 : -1] for row in whole if len(row) > length]
        if lost and warn:
            text = "; ".join(tokenizer.decode(row) for row in lost)
            warnings.warn(
                f"The prompt is longer than the {length} tokens that the text encoder reads. This part is "
                f"cut off: {text!r:.300}. Shorten the prompt, or put what matters first.",
                stacklevel=2,
            )
    return found.input_ids, found.attention_mask


def expanded(tokenizer: Any, prompt: str) -> str:
    """Write out each learned word of several vectors in a prompt: <word> <word>_1 and so on."""
    added = tokenizer.added_tokens_encoder
    for token in added:
        tokens = [token]
        while f"{token}_{len(tokens)}" in added:
            tokens.append(f"{token}_{len(tokens)}")
        if len(tokens) > 1:
            word, whole = re.escape(token), " ".join(tokens)
            once = rf"{word}(?!_\d|\s*{word}_1)"  # not a word that is written out already
            # CLIP's tokenizers ignore case.
            prompt = re.sub(once, lambda _, whole=whole: whole, prompt, flags=re.IGNORECASE)  # type: ignore[misc]
    return prompt


def encode(
    text_encoder: Any, ids: Tensor, clip_skip: int | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the text states of the last layer, or `clip_skip` layers before it, normalised like the last."""
    if clip_skip is None:
        return text_encoder(ids, attention_mask=attention_mask)[0]
    states = text_encoder(ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers 4 has one more level
    return inner.final_layer_norm(layer_from_end(states, clip_skip))


def layer_from_end(states: Sequence[Tensor], back: int) -> Tensor:
    """Return the states `back` layers before the last."""
    if back >= len(states):
        raise InputError(
            f"The text states {back} layers before the last are asked for, but the text encoder has "
            f"{len(states) - 1} layers. Give a smaller clip_skip, usually 1 or 2, or leave it out.",
            parameter="clip_skip",
        )
    return states[-(back + 1)]


def match_rows(negative: Tensor, positive: Tensor) -> Tensor:
    """Return negative states for each positive row."""
    if negative.shape[1:] != positive.shape[1:] or len(positive) % len(negative):
        raise InputError(
            f"The negative prompt's states have the shape {tuple(negative.shape)} and the prompt's "
            f"{tuple(positive.shape)}. They must match in all but the first number, and hold one row for all "
            "prompts or one for each. Pad the shorter text, or leave negative_prompt_embeds out.",
            parameter="negative_prompt_embeds",
        )
    return negative.to(positive).repeat(len(positive) // len(negative), *[1] * (positive.ndim - 1))
