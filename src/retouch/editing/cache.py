"""Text states of prompts and latents of pictures, kept from one edit to the next.

An entry's key holds everything that changes its value, weights included. Only a few of each kind are kept.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retouch.families.call import Call
from retouch.families.family import Parts
from retouch.kernels import weight_samples

_PROMPTS, _PICTURES = 32, 16
# The arguments of a call that change its text states.
_TEXT_ARGUMENTS = ("prompt", "negative_prompt", "clip_skip", "prompt_syntax", "cross_attention_kwargs")
_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds")


class PipelineCache:
    """A `Cache` of pipelines/inputs.py for the edits of one editor."""

    def __init__(self) -> None:
        self._states, self._latents = _Recent(_PROMPTS), _Recent(_PICTURES)

    def read(self, parts: Parts, call: Call, *, guided: bool, make: Callable[[], Any]) -> Any:
        """Return what the encoders make of a call's prompts."""
        lora: Any = getattr(parts, "get_list_adapters", dict)
        if lora() or any(getattr(call, name) is not None for name in _EMBEDDINGS):
            return make()
        texts = tuple(repr(getattr(call, name)) for name in _TEXT_ARGUMENTS)
        switches = tuple(getattr(parts, name) for name in parts.family.switches)
        key = (texts, repr(call.own), switches, guided, str(parts.device), _text_parts(parts))
        return self._states.get(key, make)

    def encoded(self, parts: Parts, pixels: Tensor, make: Callable[[Any], Tensor]) -> Tensor:
        """Return the latents of pixels, always with the same noise."""
        vae = parts.part(parts.family.autoencoder)
        tiles = getattr(vae, "use_tiling", False) and vae.tile_sample_min_size
        digest = hashlib.sha256(pixels.float().cpu().numpy().tobytes()).digest()
        key = digest, pixels.shape, pixels.dtype, tiles, str(parts.device), _fingerprint(vae)
        latents: Tensor = self._latents.get(key, lambda: make(torch.Generator().manual_seed(0)))
        return latents


class _Recent:
    """The values used last, from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the value of a key, and make it if there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()  # two threads may both make it, which is better than waiting
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return value


def _text_parts(parts: Parts) -> tuple[Any, ...]:
    """Return what identifies text encoders and tokenizers. Learned words and fused adapters change it."""
    found: list[Any] = []
    for name, part in parts.components.items():
        if name.startswith("text_encoder") and part is not None:
            found += [_fingerprint(part), weakref.ref(part.get_input_embeddings().weight)]
        elif name.startswith("tokenizer") and part is not None:
            found += [weakref.ref(part), len(part)]
    return tuple(found)


@torch.no_grad()
def _fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Return which module it is, and a digest of a few values of each of its tensors."""
    content = torch.cat(weight_samples(module)).cpu().numpy().tobytes()
    dtype = next(module.parameters()).dtype
    return weakref.ref(module), dtype, hashlib.sha256(content).digest()
