"""Latents larger than a model was trained on: overlapping windows of one field, averaged at every step.

All windows share the latents, so they agree where they meet and no seam arises.
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


def windows(length: int, size: int, overlap: int, multiple: int = 1) -> list[int]:
    """Return the starts of windows of `size` that cover `length`: evenly spaced, sharing at least `overlap`.

    Starts are multiples of `multiple`, as `length` and `size` must be.
    """
    if length <= size:
        return [0]
    length, size, overlap = length // multiple, size // multiple, -(-overlap // multiple)
    count = -(-(length - overlap) // (size - overlap))
    return [round(index * (length - size) / (count - 1)) * multiple for index in range(count)]


def tiled(predict: Predictor, size: int, overlap: int, multiple: int = 1) -> Callable[[Tensor, Step], Tensor]:
    """Return `predict` over windows of `size` latents a side; a window weighs less near its border.

    `multiple` is that of the model's tokens, in latents.
    """
    models: dict[tuple[int, int], Callable[..., Any]] = {}

    def model_at(place: tuple[int, int]) -> Callable[..., Any]:
        """Return the model for a window; a model with a memory has one for each window."""
        if not isinstance(predict.model, DeepReuse):
            return predict.model
        return models.setdefault(place, predict.model.fresh())

    def whole(latents: Tensor, step: Step) -> Tensor:
        height, width = latents.shape[-2:]
        summed: Tensor | None = None
        weight = torch.zeros_like(latents[:1, :1])
        for top in windows(height, size, overlap, multiple):
            for left in windows(width, size, overlap, multiple):
                part = (..., slice(top, top + size), slice(left, left + size))
                channels = None if predict.channels is None else predict.channels[part]
                shape = latents[part].shape[-2:]
                ramp = _ramp(shape[0], overlap)[:, None] * _ramp(shape[1], overlap)[None]
                ramp = ramp.to(latents)
                window = replace(predict, channels=channels, model=model_at((top, left)))
                prediction = window(latents[part], step)
                if summed is None:  # some models predict more channels than they get
                    summed = latents.new_zeros(*prediction.shape[:2], height, width)
                summed[part] += ramp * prediction
                weight[part] += ramp
        assert summed is not None
        return summed / weight

    return whole


def _ramp(length: int, overlap: int) -> Tensor:
    """Return weights: 1 in the middle, falling towards both ends."""
    away = torch.arange(length).minimum(torch.arange(length).flip(0)) + 1
    return (away / (overlap + 1)).clamp(max=1)
