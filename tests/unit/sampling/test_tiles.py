"""Prediction in overlapping windows, with a model of one line."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from retouch.sampling.guidance import Guidance
from retouch.sampling.predict import Predictor
from retouch.sampling.tiles import tiled, windows

STEP: Any = SimpleNamespace(timestep=torch.tensor(5))
PLAN: Any = SimpleNamespace(scale_input=lambda latents, step: latents)


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(8, 8, 2), (5, 8, 2), (9, 8, 2), (33, 8, 2), (64, 16, 4)]
)
def test_windows_cover_evenly(length: int, size: int, overlap: int) -> None:
    starts = windows(length, size, overlap)
    covered = {index for start in starts for index in range(start, min(start + size, length))}
    assert covered == set(range(length)) and starts[0] == 0
    if length > size:
        assert starts[-1] == length - size
        shared = [a + size - b for a, b in pairwise(starts)]
        assert min(shared) >= overlap and max(shared) - min(shared) <= 1, "evenly apart"


def predictor(model: Any, channels: Tensor | None = None) -> Predictor:
    return Predictor(model, PLAN, Guidance(1.0, active=False), {}, channels)


def test_a_model_that_looks_at_single_latents_is_not_changed() -> None:
    channels = torch.randn(1, 2, 20, 33)
    latents = torch.randn(1, 4, 20, 33)

    def model(x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert x.shape[-1] <= 8 and x.shape[-2] <= 8
        return (x[:, :4] * 2 + x[:, 4:5],)

    whole = tiled(predictor(model, channels), 8, 2)(latents, STEP)
    assert_close(whole, latents * 2 + channels[:, :1])  # windows and channels are aligned


def test_windows_fade_into_each_other() -> None:
    calls = iter(range(100))

    def model(x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (torch.full_like(x, float(next(calls))),)

    field = tiled(predictor(model), 8, 4)(torch.zeros(1, 1, 8, 12), STEP)[0, 0, 0]
    assert field[0] == 0 and field[-1] == 1
    assert bool((field.diff() >= 0).all()) and field.diff().max() < 0.5, "a ramp, not a step"


def test_a_model_that_predicts_more_channels() -> None:
    field = tiled(predictor(lambda x, t, return_dict: (torch.cat([x, x], 1),)), 4, 1)(
        torch.ones(1, 4, 9, 9), STEP
    )
    assert field.shape == (1, 8, 9, 9) and torch.allclose(field, torch.ones(1))
