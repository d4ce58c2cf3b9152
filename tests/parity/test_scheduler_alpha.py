"""DDIM, DDPM, PNDM, LCM and TCD compared with diffusers: all numbers of whole runs, for many settings."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from closeness import TABLE, one_rounding
from scheduler_grid import compare, grid

from retouch.schedulers import DDIMScheduler, DDPMScheduler, noise_schedule

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "linspace", "trailing"]
# (steps, evaluations that strength leaves out)
RUNS = [(1, 0), (2, 0), (7, 0), (7, 3), (20, 1)]


def config(prediction: str, spacing: str, **more: Any) -> dict[str, Any]:
    offset = 1 if spacing == "leading" else 0  # as in checkpoints
    return STABLE_DIFFUSION | {
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": offset,
        **more,
    }


OF_THE_ORIGINAL = [
    {},
    {"clip_sample": True, "clip_sample_range": 0.8},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("steps", "start"), RUNS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(prediction: str, spacing: str, steps: int, start: int, eta: float) -> None:
    for of_the_original in OF_THE_ORIGINAL:
        for to_one in (True, False):
            options = {"clip_sample": False, "set_alpha_to_one": to_one} | of_the_original
            settings = config(prediction, spacing, **options)
            compare("DDIMScheduler", settings, steps, start=start, eta=eta, originals=True)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(name: str, prediction: str) -> None:
    settings = config(prediction, "trailing", rescale_betas_zero_snr=True)
    compare(name, settings, 5, originals=name != "TCDScheduler" and name != "LCMScheduler")


VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("steps", "start"), RUNS)
def test_ddpm(prediction: str, spacing: str, steps: int, start: int) -> None:
    for options in grid(variance_type=VARIANCES, clip_sample=[False, True]):
        outputs = 2 if options["variance_type"] == "learned_range" else 1
        settings = config(prediction, spacing, **options)
        compare("DDPMScheduler", settings, steps, start=start, outputs=outputs, originals=True)


def test_ddpm_with_thresholding() -> None:
    compare("DDPMScheduler", config("epsilon", "leading", **OF_THE_ORIGINAL[2]), 5, originals=True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("steps", "start"), [*RUNS, (3, 0), (9, 2)])
@pytest.mark.parametrize("to_one", [True, False])
def test_pndm_started_by_one_repeated_step(
    prediction: str, spacing: str, steps: int, start: int, to_one: bool
) -> None:
    settings = config(prediction, spacing, skip_prk_steps=True, set_alpha_to_one=to_one)
    compare("PNDMScheduler", settings, steps, start=start)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("steps", "start"), [(4, 0), (5, 0), (9, 0), (20, 4), (9, 3)])
def test_pndm_started_by_runge_kutta(prediction: str, spacing: str, steps: int, start: int) -> None:
    compare("PNDMScheduler", config(prediction, spacing, skip_prk_steps=False), steps, start=start)


@pytest.mark.filterwarnings("ignore:.*timestep:UserWarning")
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("steps", "start"), [(1, 0), (2, 0), (3, 1), (4, 0), (7, 2)])
def test_distilled(prediction: str, steps: int, start: int) -> None:
    for options in grid(original_inference_steps=[50, 30], set_alpha_to_one=[True, False]):
        settings = config(prediction, "leading", **options)
        for limits in OF_THE_ORIGINAL:
            compare("LCMScheduler", settings | limits, steps, start=start)
        for eta in (0.0, 0.3, 1.0):
            compare("TCDScheduler", settings, steps, start=start, eta=eta)


def test_lcm_takes_the_distillation_steps_for_one_run() -> None:
    compare("LCMScheduler", {}, 4, original_inference_steps=40)


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize(("timesteps", "start"), [([999, 640, 5], 0), ([999, 640, 5], 2), ([999], 0)])
def test_custom_timesteps(name: str, timesteps: list[int], start: int) -> None:
    compare(name, STABLE_DIFFUSION, None, timesteps=timesteps, start=start, eta=0.5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_each_row_draws_from_its_own_generator(name: str) -> None:
    compare(name, STABLE_DIFFUSION, 4, eta=1.0, rows=2)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_reference_does(name: str, dtype: torch.dtype) -> None:
    compare(name, STABLE_DIFFUSION, 6, eta=0.5, dtype=dtype, tolerance=one_rounding(dtype))


BETAS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "laplace"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.001 * (i + 1) for i in range(60)], "num_train_timesteps": 60},
    {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_betas(betas: dict[str, Any]) -> None:
    ours, theirs = DDPMScheduler(**betas), diffusers.DDPMScheduler(**betas)
    assert torch.allclose(ours.betas, theirs.betas, rtol=TABLE, atol=0)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=TABLE, atol=1e-9)
    compare("DDPMScheduler", betas, 6)


def test_velocity() -> None:
    sample, noise = torch.randn(2, 3, 4, 4, 4)
    timesteps = torch.tensor([10, 900, 0])
    expected = diffusers.DDIMScheduler().get_velocity(sample, noise, timesteps)
    assert torch.equal(DDIMScheduler().get_velocity(sample, noise, timesteps), expected)


def test_trailing_spacing_gives_the_number_asked_for() -> None:
    """For 61 steps diffusers appends a timestep of -1, whose step starts from pure noise."""
    for steps in range(1, 1001):
        timesteps = noise_schedule.spaced_timesteps("trailing", steps, 1000)
        assert len(timesteps) == steps and timesteps.min() >= 0
