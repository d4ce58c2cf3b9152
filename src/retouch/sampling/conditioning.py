"""Conditioning: the model's keyword inputs other than latents, in a positive and a negative half.

Text states for Stable Diffusion, with pooled text and size ids for SDXL, image embeddings for Kandinsky:
guidance pairs, repeats and joins them without knowing which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Keyword -> tensor, or a mapping or list of tensors; the first axis is the batch. Other values pass
# unchanged.
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Conditioning:
    """The inputs that guidance follows, and those that it pushes away from."""

    positive: Inputs
    negative: Inputs | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs. Noise is drawn in it, as in the reference."""
        return next(_tensors(self.positive)).dtype

    def with_added(self, positive: Inputs, negative: Inputs | None) -> Conditioning:
        """Return the same conditioning with further `added_cond_kwargs` in both halves."""

        def joined(half: Inputs, more: Inputs) -> Inputs:
            return {**half, "added_cond_kwargs": {**half.get("added_cond_kwargs", {}), **more}}

        if self.negative is None or negative is None:
            return Conditioning(joined(self.positive, positive))
        return Conditioning(joined(self.positive, positive), joined(self.negative, negative))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def spread(values: Tensor, rows: int) -> Tensor:
    """Return one row for each picture to make, from one for all or one for each prompt."""
    if values.shape[0] == 1:
        return values.repeat(rows, *[1] * (values.ndim - 1))
    return values.repeat_interleave(rows // values.shape[0], dim=0)


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
    """Return the inputs with every tensor changed by `function`."""
    return {key: _changed(value, function) for key, value in inputs.items()}


def _changed(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [_changed(part, function) for part in value]
    return each(value, function) if isinstance(value, Mapping) else value
