"""A recording of a run: which frames it keeps, what they show, and what it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_pairs import load, mask, photo

import retouch
from retouch.families.latents import LatentLayout
from retouch.pipelines.progress import Recording, linear_colours


@pytest.fixture
def call(tiny_sd: Path) -> Any:
    pipeline = load(retouch, "StableDiffusionInpaintPipeline", tiny_sd)

    def run(**options: Any) -> Any:
        options = {"image": photo(), "mask_image": mask(), "num_inference_steps": 5, **options}
        return pipeline("a cat", generator=torch.Generator().manual_seed(1), **options)

    return run


def test_a_frame_for_each_step(call: Any) -> None:
    output = call(record=True)
    frames = output.recording.frames
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 5, 6]  # PNDM takes one more than asked for
    levels = [frame.noise_level for frame in frames]
    assert levels == sorted(levels, reverse=True) and levels[0] < 1 and levels[-1] == 0
    assert frames[0].caption.startswith("step 1/6")
    assert np.array_equal(frames[-1].image, output.images[0]), "the last frame is the result"
    assert not np.array_equal(frames[0].image, frames[-1].image)


def test_recording_changes_nothing(call: Any) -> None:
    plain, recorded = call(output_type="np"), call(output_type="np", record=Recording(fast=True))
    assert np.array_equal(plain.images, recorded.images)
    assert plain.recording is None


def test_memory_stays_bounded(call: Any) -> None:
    recording = call(num_inference_steps=40, record=Recording(fast=True, limit=8)).recording
    steps = [frame.step for frame in recording.frames]
    assert len(steps) <= 8 and steps[-1] == 41
    gaps = set(np.diff(steps[:-1]).tolist())
    assert len(gaps) == 1, "the frames that are left are evenly apart"


def test_odd_sizes_and_batches(call: Any) -> None:
    odd = call(image=photo(width=50, height=37), mask_image=mask((5, 5, 30, 30), 50, 37), record=True)
    assert odd.recording.frames[0].image.size == (50, 37)
    two = call(num_images_per_prompt=2, record=Recording(fast=True))
    assert two.recording.frames[0].image.size == (128, 64)


@pytest.mark.parametrize("caption", [False, True])
def test_files(call: Any, tmp_path: Path, caption: bool) -> None:
    recording = call(record=True).recording
    for save, name in ((recording.save_gif, "run.gif"), (recording.save_webp, "run.webp")):
        with Image.open(save(tmp_path / name, seconds=0.2, hold=1.5, caption=caption)) as animation:
            durations = []
            for index in range(animation.n_frames):
                animation.seek(index)
                animation.load()
                durations.append(animation.info["duration"])
            assert animation.width == 64 and (animation.height > 64) == caption
            assert sum(durations) == 5 * 200 + 1500  # WebP joins frames that look the same
            assert durations[-1] >= 1500, "the last frame is held"
            assert name != "run.gif" or durations[:-1] == [200] * 5
    with Image.open(recording.save_grid(tmp_path / "run.png", columns=4, caption=caption)) as grid:
        assert grid.width == 4 * 64 and grid.height % 2 == 0


def test_what_is_no_recording(call: Any, tmp_path: Path) -> None:
    with pytest.raises(retouch.InputError, match=r"record is a str.*retouch\.Recording"):
        call(record="run.gif")
    with pytest.raises(retouch.InputError, match="limit=1"):
        Recording(limit=1)
    with pytest.raises(retouch.InputError, match="no frames yet"):
        Recording().save_gif(tmp_path / "run.gif")


class _LinearVae:
    """Latents are the mean colours of 8x8 pixels, mixed: what the linear map has to find."""

    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0], [0.2, 0.2, 0.2]])


def test_the_linear_map_finds_the_colours() -> None:
    class Pipeline:
        vae, layout, device, dtype = _LinearVae(), LatentLayout(4), "cpu", torch.float32
        family = SimpleNamespace(autoencoder="vae")

        def part(self, name: str) -> Any:
            return getattr(self, name)

        def encode(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            means = torch.nn.functional.avg_pool2d(pixels, 8)
            return torch.einsum("nchw,lc->nlhw", means, self.vae.mixing)

    pipeline, colours = Pipeline(), torch.rand(1, 3, 2, 3) - 0.5
    pixels = colours.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (linear_colours(pipeline, pipeline.encode(pixels, torch.Generator())) - pixels).abs().max() < 1e-4


@pytest.mark.parametrize(("factor", "grey"), [(0.18215, 0.05), (0.13025, 0.4)])
def test_published_vaes_need_no_fit(factor: float, grey: float) -> None:
    """What their users found. The tiny ones have the same factor, but other widths, and are fitted."""

    class Vae:
        config = SimpleNamespace(scaling_factor=factor, block_out_channels=[128, 256, 512, 512])

    class Pipeline:
        vae, layout, family = Vae(), LatentLayout(4), SimpleNamespace(autoencoder="vae")

        def part(self, name: str) -> Any:
            return getattr(self, name)

    latents = torch.zeros(1, 4, 1, 2)
    latents[0, 0, 0, 1] = 1.0
    colours = linear_colours(Pipeline(), latents)
    assert colours.shape == (1, 3, 8, 16) and not colours[..., :8].any()
    assert colours[..., 8:].mean() > grey, "the first latent is brightness above all"
