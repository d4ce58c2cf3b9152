"""A hole that falls between the latents is not passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_pairs import load, mask, photo

import retouch


def test_a_hole_between_the_latents(tiny_sd: Path) -> None:
    pipeline = load(retouch, "StableDiffusionInpaintPipeline", tiny_sd)
    hole = mask((10, 10, 14, 14))
    options = {"image": photo(), "mask_image": hole, "num_inference_steps": 1, "output_type": "np"}
    with pytest.warns(UserWarning, match=r"8 pixels wide.*padding_mask_crop"):
        pipeline("a cat", **options)
    cropped = pipeline("a cat", **{**options, "output_type": "pil"}, padding_mask_crop=4).images[0]
    assert cropped.getpixel((12, 12)) != photo().getpixel((12, 12))
