"""SDXL in two stages with multistep, second-order and stochastic schedulers; and its refiner at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from closeness import assert_close
from pipeline_pairs import PROMPT, Pair, compare_runs, generators, mask, photo, task_inputs, xl_pair

Make = Callable[[str, str], Pair]
BASE, INPAINT, REFINER = "tiny_sdxl", "tiny_sdxl_inpaint", "tiny_sdxl_refiner"


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Make:
    return lambda checkpoint, task: xl_pair(request.getfixturevalue(checkpoint), task)


SCHEDULERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
}


def compare_stages(base: Pair, refiner: Pair, share: float) -> None:
    """Run `share` of the schedule with the first pair, and the rest from its latents with the second."""
    inputs = task_inputs(base.task)
    shared = ("mask_image", "height", "width") if refiner.task == "inpaint" else ()
    kept = {name: inputs[name] for name in shared}
    common: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 10, "guidance_scale": 3.0}

    def run(stages: tuple[Any, Any], generator: Any) -> list[torch.Tensor]:
        first, second = stages
        handed = first(
            **common, **inputs, generator=generator, denoising_end=share, output_type="latent"
        ).images
        done = second(
            **common, **kept, image=handed, generator=generator, denoising_start=share, output_type="pt"
        ).images
        return [handed, done]

    compare_runs(run, (base.ours, refiner.ours), (base.theirs, refiner.theirs), seeds=5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("task", ["text2image", "inpaint"])
def test_prediction_types(made: Make, task: str, prediction_type: str) -> None:
    finish = task if task == "inpaint" else "image2image"
    scheduler, options = "EulerDiscreteScheduler", {"prediction_type": prediction_type}
    compare_stages(
        made(BASE, task).scheduled(scheduler, **options),
        made(REFINER, finish).scheduled(scheduler, **options),
        0.6,
    )


# For Heun, the two cut inside a step and between steps.
@pytest.mark.parametrize(("name", "share"), [*((name, 0.5) for name in SCHEDULERS), ("Heun", 0.8)])
@pytest.mark.parametrize("task", ["text2image", "inpaint"])
def test_two_stages(made: Make, task: str, name: str, share: float) -> None:
    """Each stage has its own memory, and the last step of the first is not a final one."""
    scheduler, options = SCHEDULERS[name]
    finish = task if task == "inpaint" else "image2image"
    compare_stages(
        made(BASE, task).scheduled(scheduler, **options),
        made(REFINER, finish).scheduled(scheduler, **options),
        share,
    )


@pytest.mark.parametrize("finish", ["image2image", "inpaint"])
def test_an_inpainting_checkpoint_as_the_first_stage(made: Make, finish: str) -> None:
    compare_stages(made(INPAINT, "inpaint"), made(REFINER, finish), 0.7)


@pytest.mark.parametrize("name", ["DPM++ 2M", "Heun", "UniPC"])
@pytest.mark.parametrize("task", ["image2image", "inpaint"])
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_refiner_with_strength(made: Make, task: str, name: str, strength: float) -> None:
    scheduler, options = SCHEDULERS[name]
    made(REFINER, task).scheduled(scheduler, **options).compare(
        **task_inputs(task),
        strength=strength,
        num_inference_steps=8,
        aesthetic_score=8.0,
        negative_prompt="a bench",
    )


def test_denoising_start_overrules_strength(made: Make) -> None:
    noisy = 5 * torch.randn(1, 4, 8, 8, generator=generators(1))
    pair = made(REFINER, "image2image")
    results = [
        pair.ours(PROMPT, image=noisy, denoising_start=0.5, strength=strength, num_inference_steps=6,
                  generator=generators(2), output_type="pt").images
        for strength in (0.1, 1.0)
    ]  # fmt: skip
    assert torch.equal(*results)
    pair.compare(image=noisy, denoising_start=0.5, strength=0.1, num_inference_steps=6)


@pytest.mark.parametrize("checkpoint", [BASE, INPAINT, REFINER])
def test_batch_of_crops(made: Make, checkpoint: str) -> None:
    """The reference crops and pastes one picture, so each of ours is compared with one call of it."""
    pair = made(checkpoint, "inpaint")
    pictures = [photo(1, 120, 90), photo(2, 96, 128)]
    masks = [mask((70, 30, 90, 50), 120, 90), mask((10, 20, 60, 44), 96, 128)]
    prompts = ["a cat", "a castle in the park"]
    options: dict[str, Any] = {
        "padding_mask_crop": 8,
        "height": 64,
        "width": 64,
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "strength": 0.9,
    }
    together = pair.ours(
        prompts, image=pictures, mask_image=masks, generator=generators([1, 2]), **options
    ).images
    for row, result in enumerate(together):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = pair.theirs(
                prompts[row],
                image=pictures[row],
                mask_image=masks[row],
                generator=generators(1 + row),
                **options,
            ).images
        assert result.size == pictures[row].size
        assert_close([result], alone)
