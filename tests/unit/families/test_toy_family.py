"""A family from outside the package: its file and one registry row are enough for every task and every
helper.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close, assert_equal
from PIL import Image
from toy_family import ToyImg2ImgPipeline, ToyInpaintPipeline, ToyPipeline, entry_point, toy_pipeline

import retouch
from retouch.editing.editor import Editor
from retouch.families import registry
from retouch.pipelines.progress import preview

SIDE = 64
FAST: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The family's package, as if it were installed."""
    monkeypatch.syspath_prepend(str(entry_point(tmp_path / "site")))
    importlib.invalidate_caches()
    registry.forget_added_rows()
    yield
    registry.forget_added_rows()


@pytest.fixture
def pipeline() -> ToyPipeline:
    return toy_pipeline()


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    down, across = np.mgrid[:height, :width]
    levels = [4 * down, 3 * across, 2 * (down + across)]
    return Image.fromarray(np.clip(np.stack(levels, -1), 0, 255).astype(np.uint8))


def mask(box: tuple[int, int, int, int], width: int = SIDE, height: int = SIDE) -> Image.Image:
    picture = Image.new("L", (width, height))
    picture.paste(255, box)
    return picture


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_latents_pack_into_tokens_and_back(pipeline: ToyPipeline) -> None:
    latents = torch.arange(2 * 16 * 4 * 6.0).reshape(2, 16, 4, 6)
    tokens = pipeline.layout.packed(latents)
    assert tokens.shape == (2, 6, 64)
    # A token holds the four latents of a square, channel by channel.
    assert tokens[0, 1, :4].tolist() == latents[0, 0, :2, 2:4].flatten().tolist()
    assert torch.equal(pipeline.layout.unpacked(tokens, (4, 6)), latents)


def test_scale_and_shift_are_those_of_the_autoencoder(pipeline: ToyPipeline) -> None:
    pixels = 2 * torch.rand(1, 3, SIDE, SIDE, generator=seeded()) - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.sample(seeded(2))
        latents = pipeline.encode(pixels, seeded(2))
        assert_equal(latents, (raw - 0.12) * 0.36)
        assert_close(pipeline.decode(latents), lambda: pipeline.vae.decode(latents / 0.36 + 0.12).sample)


def test_text2image_runs_on_tokens(pipeline: ToyPipeline) -> None:
    image = pipeline("a cat", height=64, width=96, generator=seeded(), **FAST).images[0]
    assert image.size == (96, 64)
    assert pipeline.transformer.seen == [(2, 4 * 6, 64)] * 3
    other = pipeline("a dog", height=64, width=96, generator=seeded(), **FAST).images[0]
    assert np.asarray(other).tolist() != np.asarray(image).tolist()


def test_sizes_are_multiples_of_a_token(pipeline: ToyPipeline) -> None:
    with pytest.raises(retouch.InputError, match="height=40 is not a multiple of 16") as refusal:
        pipeline("a cat", height=40, width=64, **FAST)
    assert refusal.value.parameter == "height"


def test_the_schedule_shifts_with_the_number_of_tokens(pipeline: ToyPipeline) -> None:
    runs = [pipeline.start("a cat", height=side, width=side, **FAST) for side in (32, 512)]
    plans = [run.family.schedule(pipeline, run.call, run.size, None)[0] for run in runs]
    small, large = ([float(step) for step in plan.timesteps] for plan in plans)
    assert small[0] == large[0] == 1000 and small[1] < large[1]


def test_image2image_starts_from_the_picture(pipeline: ToyPipeline) -> None:
    image2image = ToyImg2ImgPipeline.from_pipe(pipeline)
    given = {**FAST, "output_type": "latent", "generator": seeded()}
    clean = pipeline.encode(image2image.image_processor.preprocess(photo()), seeded())
    low = image2image("a cat", photo(), strength=0.34, **given).images
    high = image2image("a cat", photo(), strength=1.0, **{**given, "generator": seeded()}).images
    assert (low - clean).abs().mean() < (high - clean).abs().mean()


def test_inpainting_keeps_the_latents_outside_the_mask(pipeline: ToyPipeline) -> None:
    inpaint = ToyInpaintPipeline.from_pipe(pipeline)
    hole = mask((16, 16, 48, 48))
    painted = inpaint("a cat", photo(), hole, output_type="latent", generator=seeded(), **FAST).images
    pixels = inpaint.image_processor.preprocess(photo())
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert_close(torch.Tensor(painted)[..., outside], lambda: inpaint.encode(pixels, seeded())[..., outside])
    clean = inpaint.encode(pixels, seeded())
    assert (torch.Tensor(painted)[..., ~outside] - clean[..., ~outside]).abs().min() > 0


def test_a_picture_of_any_size_keeps_it(pipeline: ToyPipeline) -> None:
    inpaint = ToyInpaintPipeline.from_pipe(pipeline)
    run = inpaint.start("a cat", photo(70, 50), mask((20, 20, 40, 40), 70, 50), **FAST)
    assert run.size == (64, 80), "filled up to whole tokens"
    assert run.result().images[0].size == (70, 50)


def test_a_crop_is_worked_on_in_whole_tokens(pipeline: ToyPipeline) -> None:
    inpaint = ToyInpaintPipeline.from_pipe(pipeline)
    large, hole = photo(200, 160), mask((90, 70, 110, 90), 200, 160)
    result = inpaint(
        "a cat", large, hole, padding_mask_crop=8, height=64, width=64, generator=seeded(), **FAST
    )
    before, after = np.asarray(large), np.asarray(result.images[0])
    changed = (before != after).any(-1)
    assert changed[70:90, 90:110].any() and not changed[np.asarray(hole) == 0].any()


def test_windows_start_at_whole_tokens(pipeline: ToyPipeline) -> None:
    pipeline("a cat", height=64, width=112, tile_size=64, generator=seeded(), **FAST)
    assert set(pipeline.transformer.seen) == {(2, 16, 64)}, "two windows of 4 x 4 tokens in each step"


def test_previews_and_recordings_have_the_pictures_colours(pipeline: ToyPipeline) -> None:
    clean = pipeline.encode(pipeline.image_processor.preprocess(photo()), seeded())
    assert preview(pipeline, clean).shape == (1, 3, SIDE, SIDE)
    inpaint = ToyInpaintPipeline.from_pipe(pipeline)
    recording = inpaint(
        "a cat", photo(), mask((16, 16, 48, 48)), record=True, generator=seeded(), **FAST
    ).recording
    assert [frame.step for frame in recording.frames] == [1, 2, 3]


def test_the_verbs_keep_every_pixel_outside_the_mask(pipeline: ToyPipeline) -> None:
    editor = Editor(ToyInpaintPipeline.from_pipe(pipeline), show_progress=False)
    large, hole = photo(210, 170), mask((90, 70, 120, 100), 210, 170)
    edit = editor.inpaint(large, hole, "a cat", steps=2, size=64, seed=1, feather=0)
    changed = (np.asarray(large) != np.asarray(edit.image)).any(-1)
    assert changed[70:100, 90:120].any() and not changed[np.asarray(hole) == 0].any()
    assert all(crop.width % 16 == crop.height % 16 == 0 for crop in edit.crops)


def test_an_entry_point_registers_the_family(registered: None, pipeline: ToyPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    pipeline.save_pretrained(folder)
    loaded = retouch.AutoPipelineForInpainting.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is ToyInpaintPipeline
    assert retouch.ToyInpaintPipeline is ToyInpaintPipeline and "ToyPipeline" in retouch.__all__
    wanted = ToyInpaintPipeline.from_pipe(pipeline)
    call = {"image": photo(), "mask_image": mask((16, 16, 48, 48)), **FAST, "output_type": "pt"}
    found = loaded("a cat", generator=seeded(), **call).images
    assert_close(found, lambda: wanted("a cat", generator=seeded(), **call).images)
    assert type(retouch.AutoPipelineForText2Image.from_pipe(loaded)) is ToyPipeline


def test_without_the_entry_point_the_family_is_unknown(pipeline: ToyPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(retouch.ConfigError, match=r"ToyPipeline.*StableDiffusionPipeline"):
        retouch.AutoPipelineForInpainting.from_pretrained(tmp_path / "checkpoint")
    sys.modules["retouch"].__dict__.pop("ToyInpaintPipeline", None)
    with pytest.raises(AttributeError, match="ToyInpaintPipeline"):
        _ = retouch.ToyInpaintPipeline
