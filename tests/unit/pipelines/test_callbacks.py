"""What a callback returns and a run cannot take."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_pairs import NAMES, generators, load

import retouch


@pytest.fixture
def paint(tiny_sd: Path) -> Any:
    pipeline = load(retouch, NAMES["text2image"], tiny_sd)

    def paint(**options: Any) -> torch.Tensor:
        options |= {"num_inference_steps": 3, "output_type": "latent", "generator": generators(1)}
        return pipeline("a cat", height=64, width=64, **options).images

    return paint


def test_unknown_names_are_told_once_in_a_run(paint: Any) -> None:
    def answer(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors | {"latent": 3} | ({"sample": 4} if index == 2 else {})

    plain = paint()
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            assert torch.equal(paint(callback_on_step_end=answer), plain)
        first, second = map(str, (each.message for each in told))
        assert first.startswith("The callback returned latent, which has no effect.")
        assert "can replace latents, prompt_embeds, negative_prompt_embeds, mask" in first
        assert second.startswith("The callback returned sample,")


def test_what_can_be_replaced_is_taken_in_silence(paint: Any) -> None:
    seen = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def answer(run: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any] | None:
        assert set(tensors) == set(seen)
        return None if index == 1 else tensors

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paint(callback_on_step_end=answer, callback_on_step_end_tensor_inputs=seen)
