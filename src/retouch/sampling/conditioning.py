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

Inputs = Mapping[str, Any]  # keyword -> tensor, or a mapping of them; the first axis is the batch


@dataclass(frozen=True)
class Conditioning:
    """The inputs that pull towards the prompt, and those that guidance pushes away from."""

    positive: Inputs
    negative: Inputs | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs, in which the reference draws its noise too."""
        return next(_tensors(self.positive)).dtype


def _tensors(inputs: Inputs) -> Iterator[Tensor]:
    for value in inputs.values():
        yield from [value] if isinstance(value, Tensor) else _tensors(value)


def stack(first: Inputs, second: Inputs) -> dict[str, Any]:
    """Join two sets of inputs along the batch."""
    return {
        key: torch.cat([first[key], value]) if isinstance(value, Tensor) else stack(first[key], value)
        for key, value in second.items()
    }


def each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same inputs with every tensor changed by `function`."""
    return {
        key: function(value) if isinstance(value, Tensor) else each(value, function)
        for key, value in inputs.items()
    }
