"""What an editor need not compute again: the text states of prompts that it has read lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from retouch.pipelines.latent_diffusion import LatentDiffusion

_KEPT = 32

# Call arguments of the states that encode_prompt returns, by how many it returns.
_NAMES = {
    2: ("prompt_embeds", "negative_prompt_embeds"),
    4: ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}


class PipelineCache:
    """Bounded, and keyed by all that changes the answer."""

    def __init__(self) -> None:
        self._states: OrderedDict[Any, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def inputs(self, pipeline: Any, prompt: str, negative: str | None, guidance: float) -> dict[str, Any]:
        """The prompt arguments of a call: text states where they can be kept, else the texts themselves."""
        texts = {"prompt": prompt, "negative_prompt": negative}
        if not isinstance(pipeline, LatentDiffusion) or pipeline.get_list_adapters():
            return texts  # adapters change the text encoder from call to call
        guided = pipeline.uses_guidance(guidance)
        key = (prompt, negative, guided, *_fingerprint(pipeline))
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return dict(self._states[key])
        reader: Any = pipeline
        states = reader.encode_prompt(prompt, negative_prompt=negative, do_classifier_free_guidance=guided)
        kept = {
            name: state for name, state in zip(_NAMES[len(states)], states, strict=True) if state is not None
        }
        with self._lock:
            self._states[key] = kept
            while len(self._states) > _KEPT:
                self._states.popitem(last=False)
        return dict(kept)


def _fingerprint(pipeline: Any) -> tuple[Any, ...]:
    """Other encoders, other vocabularies, another device or dtype: other states."""
    parts: list[Any] = [str(pipeline.device)]
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            parts += [id(part), part.dtype]
        elif name.startswith("tokenizer") and part is not None:
            parts += [id(part), len(part)]
    return tuple(parts)
