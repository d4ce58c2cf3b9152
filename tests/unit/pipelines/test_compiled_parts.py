"""A UNet wrapped by torch.compile, as the guide's last snippet does it, runs and is saved as itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from closeness import assert_close
from pipeline_pairs import mask, photo

import retouch


def test_compiled_unet(tiny_sd_inpaint: Path, tmp_path: Path) -> None:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained(tiny_sd_inpaint)
    pipeline.set_progress_bar_config(disable=True)

    def call(unet: Any) -> torch.Tensor:
        pipeline.unet = unet
        generator = torch.Generator().manual_seed(1)
        options = {"image": photo(), "mask_image": mask(), "num_inference_steps": 2, "output_type": "pt"}
        return pipeline("a cat", generator=generator, **options).images

    # The "eager" backend captures the graph as a compiler would, and runs it without one.
    plain, compiled = pipeline.unet, torch.compile(pipeline.unet, backend="eager", fullgraph=True)
    assert_close(call(compiled), lambda: call(plain))
    pipeline.unet = compiled
    assert pipeline.config["unet"] == ["diffusers", "UNet2DConditionModel"]
    pipeline.save_pretrained(tmp_path)
    again = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path)
    assert list(again.unet.state_dict()) == list(pipeline.unet._orig_mod.state_dict())
    assert "UNet2DConditionModel" in repr(again) and str(tmp_path) in repr(again)
