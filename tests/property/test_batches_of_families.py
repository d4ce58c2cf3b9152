"""Several pictures, masks and prompts in one pass are those of one at a time, in the other families too.

For Stable Diffusion see test_pipeline_properties.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from pipeline_pairs import load, mask, photo
from torch import Generator, Tensor

import retouch

PICTURES = [photo(seed) for seed in (1, 2, 3)]
MASKS = [mask(), mask((3, 20, 60, 37)), mask((0, 0, 20, 64))]
PROMPTS = ["a cat", "a castle", "a bench"]
SAVING = {"guidance_interval": (0.4, 1.0), "reuse_deep_features": 2}


@pytest.mark.parametrize("saving", [{}, SAVING], ids=["exact", "saving"])
@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("tiny_sdxl", "StableDiffusionXLInpaintPipeline"),
        ("tiny_sdxl_inpaint", "StableDiffusionXLInpaintPipeline"),
        ("tiny_kandinsky_whole", "KandinskyV22InpaintCombinedPipeline"),
    ],
)
def test_a_batch_is_what_its_rows_are_alone(
    request: pytest.FixtureRequest, checkpoint: str, name: str, saving: dict[str, Any]
) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    pipeline = load(retouch, name, folder)

    def call(prompt: Any, image: Any, hole: Any, *seeds: int) -> Tensor:
        sources = [Generator().manual_seed(seed) for seed in seeds]
        return pipeline(
            prompt=prompt,
            image=image,
            mask_image=hole,
            height=64,
            width=64,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=sources,
            output_type="pt",
            **saving,
        ).images

    rows = list(zip(PROMPTS, PICTURES, MASKS, (1, 2, 3), strict=True))
    together = call(PROMPTS, PICTURES, MASKS, 1, 2, 3)
    assert_close(together, lambda: torch.cat([call(*row) for row in rows]))
    assert (together[0] - together[1]).abs().max() > 0.05 and together.shape[0] == 3
    assert torch.isfinite(together).all()
