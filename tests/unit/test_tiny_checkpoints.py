"""The reference reads the tiny checkpoints, and what the tests lean on is true of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open


@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_sd2"])
def test_the_prompt_is_seen_in_a_picture_that_is_not_flat(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(request.getfixturevalue(fixture))
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np").images

    cat, castle = draw("a photo of a cat"), draw("castle in the park")
    assert cat.shape == (1, 64, 64, 3)
    assert cat.std() > 0.05
    assert np.mean((cat == 0) | (cat == 1)) < 0.1  # clipped values would hide differences
    assert np.abs(cat - castle).max() > 0.01


def test_every_parameter_does_something(tiny_sd_inpaint: Path) -> None:
    for file in tiny_sd_inpaint.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is not a mapping
                tensor = tensors.get_tensor(key)
                assert tensor.any(), f"{file.name}: {key} is all zero"
                assert tensor.numel() == 1 or not (tensor == 1).all(), f"{file.name}: {key} is all one"


def test_the_variant_is_the_same_checkpoint_in_half_precision(tiny_sd_fp16: Path) -> None:
    full = sorted(file for file in tiny_sd_fp16.rglob("*.safetensors") if ".fp16." not in file.name)
    assert len(full) == 3
    for file in full:
        with safe_open(file, "pt") as a, safe_open(file.with_suffix(".fp16.safetensors"), "pt") as b:
            assert set(a.keys()) == set(b.keys())
            key = next(key for key in a.keys() if key.endswith("weight"))  # noqa: SIM118
            assert torch.equal(a.get_tensor(key).half(), b.get_tensor(key))
