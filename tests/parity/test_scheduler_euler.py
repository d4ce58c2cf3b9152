"""Euler and Euler ancestral compared with diffusers: all numbers of whole runs, for many settings."""

from __future__ import annotations

import pytest
import torch
from closeness import one_rounding
from scheduler_grid import compare, grid

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RUNS = [(1, 0), (2, 0), (7, 0), (7, 3), (20, 1)]
NAMES = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"]
SPACED = [
    {},
    {"use_karras_sigmas": True},
    {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("steps", "start"), RUNS)
def test_euler(spacing: str, steps: int, start: int) -> None:
    for options in grid(prediction_type=["epsilon", "v_prediction", "sample"], steps_offset=[0, 1]):
        for spaced in SPACED:
            settings = STABLE_DIFFUSION | options | spaced | {"timestep_spacing": spacing}
            compare(NAMES[0], settings, steps, start=start, originals=True)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("steps", "start"), RUNS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_ancestral(spacing: str, steps: int, start: int, prediction: str) -> None:
    settings = STABLE_DIFFUSION | {"prediction_type": prediction, "timestep_spacing": spacing}
    compare(NAMES[1], settings, steps, start=start, originals=True)
    compare(NAMES[1], settings, steps, start=start, rows=2)


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr(name: str) -> None:
    settings = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    compare(name, STABLE_DIFFUSION | settings, 5, originals=True)


@pytest.mark.parametrize(
    "custom", [{"timesteps": [999, 640, 333, 5]}, {"sigmas": [14.6, 6.5, 2.0, 0.4, 0.0]}], ids=str
)
@pytest.mark.parametrize("start", [0, 2])
def test_custom_schedules(custom: dict[str, list[float]], start: int) -> None:
    compare(NAMES[0], STABLE_DIFFUSION, None, start=start, **custom)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_reference_does(name: str, dtype: torch.dtype) -> None:
    compare(name, STABLE_DIFFUSION, 6, dtype=dtype, tolerance=one_rounding(dtype))
