"""SDXL with ControlNets compared with the reference: each task, one net and two."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers.callbacks import SDXLControlnetCFGCutoffCallback
from pipeline_pairs import Pair, mask, photo
from tiny_controls import SIZE, control_inputs as inputs, control_pair, drawing

from retouch.utils import make_inpaint_condition

BASE, INPAINT = "tiny_sdxl", "tiny_sdxl_inpaint"
KINDS = [(BASE, "text2image"), (BASE, "image2image"), (BASE, "inpaint"), (INPAINT, "inpaint")]
SIZES = {"original_size": (48, 100), "target_size": (70, 64), "crops_coords_top_left": (3, 9)}


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Any:
    return lambda checkpoint, task, nets=1, **settings: control_pair(
        request.getfixturevalue(checkpoint), task, nets, **settings
    )


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 1.0},
        {"guess_mode": True, "controlnet_conditioning_scale": 0.6},
        {"control_guidance_start": 0.25, "control_guidance_end": 0.75},
        {"prompt_2": "a castle", "negative_prompt": "a bench", "negative_prompt_2": "a park"},
        {"prompt": ["a cat", "a castle"], "num_images_per_prompt": 2, "guess_mode": True},
        SIZES,
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_arguments(made: Any, checkpoint: str, task: str, arguments: dict[str, Any]) -> None:
    made(checkpoint, task).compare(**{**inputs(task), **arguments})


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@pytest.mark.parametrize("guess_mode", [False, True])
def test_two_nets(made: Any, checkpoint: str, task: str, guess_mode: bool) -> None:
    made(checkpoint, task, 2).compare(
        **inputs(task, [drawing(), drawing(1)]),
        controlnet_conditioning_scale=[0.4, 1.2],
        control_guidance_start=[0.0, 0.5],
        control_guidance_end=[0.5, 1.0],
        guess_mode=guess_mode,
    )


@pytest.mark.parametrize("checkpoint", [BASE, INPAINT])
@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_inpaint_condition(made: Any, checkpoint: str, scheduler: str) -> None:
    condition = make_inpaint_condition(photo(), mask())
    pair = made(checkpoint, "inpaint").scheduled(scheduler)
    pair.compare(**inputs("inpaint", condition), strength=1.0, control_guidance_end=0.7)


@pytest.mark.parametrize("checkpoint", [BASE, INPAINT])
def test_padding_mask_crop(made: Any, checkpoint: str) -> None:
    made(checkpoint, "inpaint").compare(
        image=photo(width=120, height=90),
        mask_image=mask((70, 30, 90, 50), width=120, height=90),
        control_image=drawing(0, 120, 90),
        **SIZE,
        padding_mask_crop=8,
        output_type="pil",
    )


@pytest.mark.parametrize("window", [(0.0, 0.5), (0.2, 0.7)])
@pytest.mark.parametrize(("checkpoint", "task"), [(BASE, "text2image"), (BASE, "inpaint")])
def test_fractions_are_of_the_schedule_without_an_early_end(
    made: Any, checkpoint: str, task: str, window: tuple[float, float]
) -> None:
    start, end = window
    made(checkpoint, task).compare(
        **inputs(task),
        denoising_end=0.6,
        num_inference_steps=10,
        control_guidance_start=start,
        control_guidance_end=end,
        output_type="latent",
    )


def test_a_net_without_attention(made: Any) -> None:
    settings = {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}
    made(BASE, "inpaint", **settings).compare(**inputs("inpaint"))


def test_the_references_callback_for_controlnets(made: Any) -> None:
    """It ends guidance half-way, and keeps one half of all tensors, also of the control picture."""
    made(BASE, "text2image").compare(
        **inputs("text2image"),
        wrap=lambda: {"callback_on_step_end": SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=0.5)},
    )


@pytest.mark.parametrize("nets", [1, 2])
def test_saved_by_one_loaded_by_the_other(made: Any, nets: int, tmp_path: Path) -> None:
    pair = made(INPAINT, "inpaint", nets)
    control = drawing() if nets == 1 else [drawing(), drawing(1)]
    pair.ours.save_pretrained(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = type(pair.theirs).from_pretrained(tmp_path / "ours")
        pair.theirs.save_pretrained(tmp_path / "theirs")
    ours = type(pair.ours).from_pretrained(tmp_path / "theirs")
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    Pair(ours, theirs, "inpaint").compare(**inputs("inpaint", control))
