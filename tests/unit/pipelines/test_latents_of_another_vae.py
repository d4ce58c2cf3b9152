"""Latents that come out of a pipeline remember their VAE, and one with another VAE refuses them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_pairs import load, mask, photo

import retouch
from retouch.families.autoencoder import Latents, identity, refuse_foreign

OURS = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.18215))
OTHER = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.13025))


@pytest.mark.parametrize(
    "change",
    [
        lambda latents: latents[0],
        lambda latents: latents[None, 0].to(torch.bfloat16),
        lambda latents: list(latents)[1],
        lambda latents: latents.split(1)[0],
        lambda latents: torch.cat([latents, latents]),
        lambda latents: [latents[0], latents[1]],
        lambda latents: 0.5 * latents,
        copy.deepcopy,
    ],
)
def test_the_mark_stays(change: Callable[[torch.Tensor], Any]) -> None:
    marked = Latents.of(torch.randn(2, 4, 8, 8), OURS)
    refuse_foreign(change(marked), OURS)
    with pytest.raises(
        retouch.InputError, match=r"scaling_factor 0.18215.*scaling_factor 0.13025.*output_type"
    ):
        refuse_foreign(change(marked), OTHER)


def test_plain_tensors_and_files_are_not_marked(tmp_path: Path) -> None:
    refuse_foreign(torch.randn(1, 4, 8, 8), OTHER)
    marked = Latents.of(torch.randn(1, 4, 8, 8), OURS)
    assert type(pickle.loads(pickle.dumps(marked))) is torch.Tensor
    file = io.BytesIO()
    torch.save(marked, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), marked.as_subclass(torch.Tensor))


def test_chain_of_two_families(tiny_sd: Path, tiny_sdxl: Path) -> None:
    """The guide's warning: this only works if the chained pipelines are using the same VAE."""
    sd = load(retouch, "StableDiffusionPipeline", tiny_sd)
    sdxl = load(retouch, "StableDiffusionXLPipeline", tiny_sdxl)
    latents = sd("a cat", num_inference_steps=2, output_type="latent").images[0]
    assert tuple(latents.shape) == (4, 8, 8)
    for task in (retouch.AutoPipelineForImage2Image, retouch.AutoPipelineForInpainting):
        extra = {"mask_image": mask()} if "Inpaint" in task.__name__ else {}
        options = {"num_inference_steps": 2, "strength": 1.0, "output_type": "np", **extra}
        other = task.from_pipe(sdxl)
        with pytest.raises(retouch.InputError, match=r"AutoencoderKL with scaling_factor 0\.18215"):
            other("a cat", image=latents, **options)
        same = task.from_pipe(sd)
        same.set_progress_bar_config(disable=True)
        assert same("a cat", image=latents, **options).images.shape == (1, 64, 64, 3)


def test_inpainting_latents_with_nine_channels(tiny_sd_inpaint: Path) -> None:
    """The masked picture is decoded for the extra channels."""
    pipeline = load(retouch, "StableDiffusionInpaintPipeline", tiny_sd_inpaint)
    options = {"mask_image": mask(), "num_inference_steps": 2, "output_type": "latent", "strength": 1.0}
    latents = pipeline.encode(torch.rand(1, 3, 64, 64) * 2 - 1, torch.Generator().manual_seed(0))
    result = pipeline("a cat", image=latents, generator=torch.Generator().manual_seed(1), **options).images
    assert result.isfinite().all() and identity(pipeline.vae) == result.vae
    assert not torch.equal(
        result, pipeline("a cat", image=photo(), generator=torch.Generator().manual_seed(1), **options).images
    )
