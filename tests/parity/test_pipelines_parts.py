"""Whole pipelines with other parts: objects of the reference, distilled models, old configs, saved files."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_close, assert_equal
from pipeline_pairs import NAMES, PROMPT, Pair, generators, pair, task_inputs

import retouch

SHARDED = "30KB"


def state_of(scheduler: Any) -> dict[str, Any]:
    """Return the contents of an object as text, to compare them before and after."""
    return {name: repr(value) for name, value in vars(scheduler).items()}


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",  # a class that we do not have
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_scheduler_of_the_reference_in_our_pipeline(tiny_sd: Path, name: str, strength: float) -> None:
    both = pair(tiny_sd, "inpaint").changed()
    own = getattr(diffusers, name).from_config(both.theirs.scheduler.config)
    both.ours.scheduler = own
    both.theirs.scheduler = getattr(diffusers, name).from_config(own.config)
    before = state_of(own)
    for _ in range(2):  # the object must be unchanged for the second call
        both.compare(**task_inputs("inpaint"), strength=strength)
        assert state_of(own) == before


def test_custom_timesteps_for_a_scheduler_of_the_reference(tiny_sd: Path) -> None:
    both = pair(tiny_sd, "text2image").changed()
    for pipeline in (both.ours, both.theirs):
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(both.theirs.scheduler.config)
    both.compare(**task_inputs("text2image"), timesteps=[900, 500, 100])


@pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint", "tiny_sd2"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_model_of_the_reference_in_our_pipeline(
    checkpoint: str, part: str, request: pytest.FixtureRequest
) -> None:
    both = pair(request.getfixturevalue(checkpoint), "inpaint")
    shared = {part: getattr(both.theirs, part)}
    both.changed(**shared).compare(
        **task_inputs("inpaint"), strength=0.7, seeds=[1, 2], num_images_per_prompt=2
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"guidance_scale": 8.5}, {"timesteps": [999, 759, 499, 259]}, {"num_images_per_prompt": 2}],
    ids=str,
)
@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint"])
def test_a_distilled_model_takes_the_guidance_as_an_input(
    tiny_checkpoint: Callable[..., Path], task: str, arguments: dict[str, Any]
) -> None:
    folder = tiny_checkpoint("tiny_lcm", time_cond_proj_dim=24, seed=8)
    both = pair(folder, task).changed("LCMScheduler")
    inputs = {**task_inputs(task), **arguments}
    if "timesteps" in arguments and task != "text2image":
        inputs["strength"] = 1.0
    both.compare(**inputs)
    weak, strong = (
        both.ours(
            PROMPT, **task_inputs(task), num_inference_steps=2, guidance_scale=scale, output_type="pt",
            generator=generators(1),
        ).images
        for scale in (1.0, 9.0)
    )  # fmt: skip
    assert (weak - strong).abs().max() > 1e-3


OLD = {
    "text2image": ("DDIMScheduler", {"steps_offset": 0, "clip_sample": True}),
    "image2image": ("DDIMScheduler", {"steps_offset": 0, "clip_sample": True}),
    "inpaint": ("PNDMScheduler", {"steps_offset": 0, "skip_prk_steps": False}),
}


@pytest.mark.parametrize("task", OLD)
def test_settings_that_early_checkpoints_left_wrong(
    tiny_sd: Path, tmp_path: Path, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    name, wrong = OLD[task]
    folder = shutil.copytree(tiny_sd, tmp_path / "old")
    getattr(retouch, name)(beta_schedule="scaled_linear", **wrong).save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", name))
    with pytest.warns(UserWarning, match="early format.*steps_offset from 0 to 1"):
        ours = getattr(retouch, NAMES[task]).from_pretrained(folder)
    with pytest.warns(FutureWarning):
        theirs = getattr(diffusers, NAMES[task]).from_pretrained(folder)
    assert {key: ours.scheduler.config[key] for key in wrong} == {
        key: theirs.scheduler.config[key] for key in wrong
    }
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    Pair(ours, theirs, task).compare(**task_inputs(task), num_inference_steps=6)


@pytest.mark.parametrize("wrong", [{"steps_offset": 0}, {"clip_sample": True}], ids=str)
def test_a_scheduler_set_by_hand_stays_as_it_is(tiny_sd: Path, wrong: dict[str, Any]) -> None:
    both = pair(tiny_sd, "inpaint").changed("DDIMScheduler", **wrong)
    both.compare(**task_inputs("inpaint"), strength=0.8)


def pictures_of(pipeline: Any, task: str) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    inputs = {**task_inputs(task), "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    return pipeline(PROMPT, **inputs, generator=generators(1)).images


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": SHARDED}], ids=str)
@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [("tiny_sd", "text2image"), ("tiny_sd2", "image2image"), ("tiny_sd_inpaint", "inpaint")],
    ids=["text2image", "image2image", "inpaint"],
)
def test_what_we_save_the_reference_loads_and_the_other_way_round(
    checkpoint: str, task: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    both = pair(request.getfixturevalue(checkpoint), task)
    variant = {key: options[key] for key in options if key == "variant"}
    both.ours.save_pretrained(tmp_path / "ours", **options)
    both.theirs.save_pretrained(tmp_path / "theirs", **options)
    listed = [
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for folder in (tmp_path / "ours", tmp_path / "theirs")
    ]
    assert listed[0] == listed[1]
    if "max_shard_size" in options:
        assert "unet/diffusion_pytorch_model.safetensors.index.json" in listed[0]
    name = NAMES[task]
    again = getattr(retouch, name).from_pretrained(tmp_path / "ours", **variant)
    assert_equal(pictures_of(again, task), pictures_of(both.ours, task))
    for library, folder in ((diffusers, "ours"), (retouch, "theirs")):
        loaded = getattr(library, name).from_pretrained(tmp_path / folder, **variant)
        assert_close(pictures_of(both.ours, task), functools.partial(pictures_of, loaded, task))


def test_the_automatic_choice_of_both_libraries_agrees_on_what_we_saved(
    tiny_sd_inpaint: Path, tmp_path: Path
) -> None:
    pair(tiny_sd_inpaint, "inpaint").ours.save_pretrained(tmp_path)
    for library in (retouch, diffusers):
        chosen = library.AutoPipelineForInpainting.from_pretrained(tmp_path)
        assert type(chosen).__name__ == "StableDiffusionInpaintPipeline"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*safety checker")
def test_the_safety_checker_of_a_saved_pipeline(tiny_sd_checked: Path, tmp_path: Path) -> None:
    ours = retouch.StableDiffusionPipeline.from_pretrained(tiny_sd_checked, safety_checker=True)
    ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    again = retouch.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=True)
    for pipeline in (ours, theirs, again):
        pipeline.set_progress_bar_config(disable=True)
        output = pipeline(PROMPT, **task_inputs("text2image"), num_inference_steps=2, output_type="pt")
        assert [bool(flag) for flag in output.nsfw_content_detected] == [True]
        assert bool(output.images.any()) == (pipeline is not theirs)  # it blackens the picture
    assert retouch.StableDiffusionPipeline.from_pretrained(tmp_path).safety_checker is None


def test_half_precision(tiny_sd: Path) -> None:
    """bfloat16 has three digits, so this compares dtypes at each place, not digits."""
    pictures = []
    for library in (retouch, diffusers):
        pipeline = library.StableDiffusionInpaintPipeline.from_pretrained(tiny_sd, dtype=torch.bfloat16)
        assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.bfloat16
        pictures.append(pictures_of(pipeline, "inpaint"))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.01
