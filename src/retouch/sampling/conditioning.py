"""What the model is told besides the latents: a mapping of its keyword inputs, in two versions.

Text states for Stable Diffusion, pooled text and size ids besides for SDXL, image embeddings for
Kandinsky: guidance pairs, repeats and joins them without knowing which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Keyword -> tensor, or a mapping or list of them; the first axis is the batch. Anything else is handed on.
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Conditioning:
    """The inputs that pull towards the prompt, and those that guidance pushes away from."""

    positive: Inputs
    negative: Inputs | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs, in which the reference draws its noise too."""
        return next(_tensors(self.positive)).dtype

    def also(self, positive: Inputs, negative: Inputs | None) -> Conditioning:
        """With further `added_cond_kwargs` on both sides."""

        def joined(side: Inputs, more: Inputs) -> Inputs:
            return {**side, "added_cond_kwargs": {**side.get("added_cond_kwargs", {}), **more}}

        if self.negative is None or negative is None:
            return Conditioning(joined(self.positive, positive))
        return Conditioning(joined(self.positive, positive), joined(self.negative, negative))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def stack(first: Inputs, second: Inputs) -> dict[str, Any]:
    """Join two sets of inputs along the batch."""
    return {key: _stacked(first[key], value) for key, value in second.items()}


def _stacked(first: Any, second: Any) -> Any:
    if isinstance(second, Tensor):
        return torch.cat([first, second])
    if isinstance(second, list):
        return [_stacked(*pair) for pair in zip(first, second, strict=True)]
    return stack(first, second) if isinstance(second, Mapping) else second


def each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same inputs with every tensor changed by `function`."""
    return {key: _changed(value, function) for key, value in inputs.items()}


def _changed(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [_changed(part, function) for part in value]
    return each(value, function) if isinstance(value, Mapping) else value
