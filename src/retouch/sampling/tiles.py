"""Latents larger than a model was trained on: overlapping windows of one field, averaged at every step.

All windows share the latents, so they agree where they meet; no seam is made that would have to be hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retouch.sampling.accelerate import DeepReuse
from retouch.sampling.predict import Predictor
from retouch.schedulers.plan import Step


def windows(length: int, size: int, overlap: int) -> list[int]:
    """Starts of windows of `size` that cover `length`, evenly spaced, at least `overlap` shared."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(index * (length - size) / (count - 1)) for index in range(count)]


def tiled(predict: Predictor, size: int, overlap: int) -> Callable[[Tensor, Step], Tensor]:
    """`predict` over windows of `size` latents a side; near its border a window counts less."""
    models: dict[tuple[int, int], Callable[..., Any]] = {}

    def model_at(place: tuple[int, int]) -> Callable[..., Any]:
        """The model, which may remember something of the window that it sees."""
        if not isinstance(predict.model, DeepReuse):
            return predict.model
        return models.setdefault(place, predict.model.apart())

    def whole(latents: Tensor, step: Step) -> Tensor:
        height, width = latents.shape[-2:]
        summed: Tensor | None = None
        weight = torch.zeros_like(latents[:1, :1])
        for top in windows(height, size, overlap):
            for left in windows(width, size, overlap):
                part = (..., slice(top, top + size), slice(left, left + size))
                channels = None if predict.channels is None else predict.channels[part]
                shape = latents[part].shape[-2:]
                ramp = _ramp(shape[0], overlap)[:, None] * _ramp(shape[1], overlap)[None]
                ramp = ramp.to(latents)
                window = replace(predict, channels=channels, model=model_at((top, left)))
                prediction = window(latents[part], step)
                if summed is None:  # some models predict more channels than they take
                    summed = latents.new_zeros(*prediction.shape[:2], height, width)
                summed[part] += ramp * prediction
                weight[part] += ramp
        assert summed is not None
        return summed / weight

    return whole


def _ramp(length: int, overlap: int) -> Tensor:
    """1 in the middle, down to a little at both ends."""
    away = torch.arange(length).minimum(torch.arange(length).flip(0)) + 1
    return (away / (overlap + 1)).clamp(max=1)
