"""diffusers loads the built-in checkpoint's folder unchanged, and paints the same pixels with it."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_close
from PIL import Image

import retouch
from retouch.checkpoints.shipped import shipped_folder

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
MASK = Image.new("L", (128, 128))
MASK.paste(255, (24, 24, 104, 104))


def painted(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    call = {"image": PHOTO, "mask_image": MASK, "num_inference_steps": 4, "guidance_scale": 2.5}
    call |= {"height": 128, "width": 128, "negative_prompt": "a dog"}
    return np.asarray(pipeline("a red apple", generator=generator, output_type="np", **call).images)


@pytest.mark.parametrize("name", ["builtin", "builtin-regular"])
def test_the_same_pixels(name: str) -> None:
    folder, parts = shipped_folder(), {}
    if name == "builtin-regular":
        parts["unet"] = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet_regular")
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder, **parts).to(torch.float32)
    ours = retouch.AutoPipelineForInpainting.from_pretrained(name)
    assert ours.tokenizer("a red apple").input_ids == theirs.tokenizer("a red apple").input_ids
    assert "preview_decoder" not in theirs.components
    assert_close(painted(ours), lambda: painted(theirs))


def test_the_preview_decoder() -> None:
    theirs = diffusers.AutoencoderTiny.from_pretrained(shipped_folder(), subfolder="preview_decoder")
    ours = retouch.AutoencoderTiny.from_pretrained("builtin", subfolder="preview_decoder")
    latents = torch.randn(1, 4, 5, 7)
    with torch.no_grad():
        assert_close(ours.decode(latents).sample, lambda: theirs.decode(latents).sample)
