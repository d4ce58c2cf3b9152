"""What an editor need not compute again: text states of prompts and latents of pictures that it met lately.

Kept by everything that changes the answer, weights included, and never more than a few of each.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from retouch.models.prepared.weights import samples
from retouch.pipelines.latent_diffusion import LatentDiffusion
from retouch.pipelines.pipeline import Pipeline

# Call arguments of the states that encode_prompt returns, by how many it returns.
_NAMES = {
    2: ("prompt_embeds", "negative_prompt_embeds"),
    4: ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}
_PROMPTS, _PICTURES = 32, 16


class PipelineCache:
    """For the Stable Diffusion families; other pipelines are given what the caller gave."""

    def __init__(self) -> None:
        self._states, self._latents = _Recent(_PROMPTS), _Recent(_PICTURES)

    def prompts(
        self, pipeline: Pipeline, prompt: str, negative: str | None, guidance: float
    ) -> dict[str, Any]:
        """The prompt arguments of a call: text states, or the texts themselves where adapters may turn up."""
        if not isinstance(pipeline, LatentDiffusion) or pipeline.get_list_adapters():
            return {"prompt": prompt, "negative_prompt": negative}
        guided = pipeline.uses_guidance(guidance)
        encoder: Any = pipeline

        def encode() -> dict[str, Any]:
            states = encoder.encode_prompt(
                prompt, negative_prompt=negative, do_classifier_free_guidance=guided
            )
            return {name: state for name, state in zip(_NAMES[len(states)], states, strict=True)}

        key = prompt, negative, guided, str(pipeline.device), _text_parts(pipeline)
        return {name: state for name, state in self._states.get(key, encode).items() if state is not None}

    def pictures(
        self, pipeline: Pipeline, picture: Image.Image, mask: Image.Image, strength: float
    ) -> dict[str, Any]:
        """The picture arguments of a call: latents of what the model takes in, always of the same noise."""
        given: dict[str, Any] = {"image": picture, "mask_image": mask}
        if not isinstance(pipeline, LatentDiffusion):
            return given
        pixels = pipeline.image_processor.preprocess(picture)
        levels = np.asarray(mask)
        if pipeline.joins_mask:
            kept = torch.from_numpy(levels < 128)
            given["masked_image_latents"] = self._encoded(pipeline, pixels * kept)
        is_soft = bool(((levels > 0) & (levels < 255)).any())
        if pipeline.keeps_original or strength < 1 or is_soft:
            given["image"] = self._encoded(pipeline, pixels)
        return given

    def _encoded(self, pipeline: LatentDiffusion, pixels: Tensor) -> Tensor:
        @torch.no_grad()
        def encode() -> Tensor:
            source = torch.Generator().manual_seed(0)
            return pipeline.encode(pixels.to(pipeline.device, pipeline.unet.dtype), source)

        digest = hashlib.sha256(pixels.numpy().tobytes()).digest()
        tiles = pipeline.vae.use_tiling and pipeline.vae.tile_sample_min_size
        place = str(pipeline.device), pipeline.unet.dtype
        latents: Tensor = self._latents.get(
            (digest, pixels.shape, tiles, place, _fingerprint(pipeline.vae)), encode
        )
        return latents


class _Recent:
    """The values used last, from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, made where there is none."""
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


def _text_parts(pipeline: Pipeline) -> tuple[Any, ...]:
    """Text encoders and tokenizers: other ones, learned words and fused adapters make other states."""
    parts: list[Any] = []
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            parts += [_fingerprint(part), weakref.ref(part.get_input_embeddings().weight)]
        elif name.startswith("tokenizer") and part is not None:
            parts += [weakref.ref(part), len(part)]
    return tuple(parts)


@torch.no_grad()
def _fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Which module, and what is in it as far as a few values of each tensor tell."""
    content = torch.cat(samples(module)).cpu().numpy().tobytes()
    dtype = next(module.parameters()).dtype
    return weakref.ref(module), dtype, hashlib.sha256(content).digest()
