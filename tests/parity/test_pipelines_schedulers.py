"""Whole pipelines with every scheduler: its numbers and noise are in first latents, steps and blending."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pipeline_pairs import pair, task_inputs

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tiny_sd", "text2image", {}),
    ("tiny_sd", "image2image", {"strength": 0.6}),
    ("tiny_sd", "inpaint", {"strength": 0.7}),
    ("tiny_sd_inpaint", "inpaint", {"strength": 1.0}),
    ("tiny_sd2", "inpaint", {"strength": 1.0}),
    ("tiny_sd2_inpaint", "inpaint", {"strength": 0.7, "guidance_scale": 1.0}),
]


def compare(
    request: pytest.FixtureRequest,
    checkpoint: str,
    task: str,
    scheduler: str,
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    both = pair(request.getfixturevalue(checkpoint), task).changed(scheduler, **(settings or {}))
    both.compare(**task_inputs(task), **arguments)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("checkpoint", "task", "arguments"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES]
)
def test_every_scheduler(
    checkpoint: str, task: str, arguments: dict[str, Any], scheduler: str, request: pytest.FixtureRequest
) -> None:
    compare(request, checkpoint, task, scheduler, **arguments)


@pytest.mark.parametrize(
    ("scheduler", "eta"), [("DDIMScheduler", 1.0), ("DDIMScheduler", 0.4), ("TCDScheduler", 0.7)]
)
@pytest.mark.parametrize("seeds", [3, [3, 4]], ids=["one generator", "a list"])
def test_eta(scheduler: str, eta: float, seeds: Any, request: pytest.FixtureRequest) -> None:
    arguments = {"eta": eta, "strength": 0.8, "seeds": seeds, "num_images_per_prompt": 2}
    compare(request, "tiny_sd", "inpaint", scheduler, **arguments)


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "LCMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("task", ["text2image", "inpaint"])
def test_noise_of_the_steps_from_a_list_of_generators(
    scheduler: str, task: str, request: pytest.FixtureRequest
) -> None:
    compare(request, "tiny_sd", task, scheduler, prompt=["a cat", "a castle"], seeds=[1, 2])


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "linspace", "solver_order": 3}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 1.5}),
        ("LCMScheduler", {"original_inference_steps": 20}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
    ids=str,
)
def test_settings_that_samplers_are_known_by(
    scheduler: str, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    zero_snr = "rescale_betas_zero_snr" in settings
    checkpoint, strength = ("tiny_sd2", 1.0) if zero_snr else ("tiny_sd", 0.6)
    compare(request, checkpoint, "inpaint", scheduler, settings, strength=strength)


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        ("DDPMScheduler", {"timesteps": [900, 600, 300, 50]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 600, 300, 50]}),
        ("HeunDiscreteScheduler", {"timesteps": [900, 600, 300, 50]}),
        ("LCMScheduler", {"timesteps": [999, 759, 259]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 600, 300, 50]}),
        ("EulerDiscreteScheduler", {"sigmas": [12.0, 6.0, 2.0, 0.7, 0.0]}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("task", "strength"), [("text2image", None), ("image2image", 0.5), ("inpaint", 1.0), ("inpaint", 0.7)]
)
def test_custom_schedules(
    task: str,
    strength: float | None,
    scheduler: str,
    schedule: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    if scheduler == "HeunDiscreteScheduler" and strength == 0.5:
        strength = 0.8  # the reference counts Heun's two evaluations as two steps, and fails with less
    given = schedule if strength is None else {**schedule, "strength": strength}
    compare(request, "tiny_sd", task, scheduler, **given)


@pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint"])
@pytest.mark.parametrize("strength", [0.99, 0.5, 0.21])
@pytest.mark.parametrize(
    "scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverSinglestepScheduler"]
)
def test_strength(checkpoint: str, strength: float, scheduler: str, request: pytest.FixtureRequest) -> None:
    compare(request, checkpoint, "inpaint", scheduler, strength=strength, num_inference_steps=5)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"])
def test_single_step(scheduler: str, request: pytest.FixtureRequest) -> None:
    compare(request, "tiny_sd", "inpaint", scheduler, num_inference_steps=1)


def test_the_usual_guidance(request: pytest.FixtureRequest) -> None:
    for checkpoint in ("tiny_sd", "tiny_sd_inpaint"):
        both = pair(request.getfixturevalue(checkpoint), "inpaint")
        both.compare(**task_inputs("inpaint"), guidance_scale=7.5, num_inference_steps=20)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd_inpaint"])
def test_no_scheduler_changes_the_dtype(
    checkpoint: str, scheduler: str, request: pytest.FixtureRequest
) -> None:
    """The model gets its own dtype in every step, and the final latents have it too."""
    ours = pair(request.getfixturevalue(checkpoint), "inpaint").changed(scheduler).ours
    for name in ("unet", "vae", "text_encoder"):
        setattr(ours, name, copy.deepcopy(getattr(ours, name)).to(torch.bfloat16))
    seen: list[torch.dtype] = []
    ours.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    latents = ours(
        "a cat", **task_inputs("inpaint"), num_inference_steps=3, strength=0.7, output_type="latent"
    )
    assert set(seen) == {torch.bfloat16} == {latents.images.dtype}
