"""Heun, KDPM2 (plain and ancestral) and LMS compared with diffusers: all numbers of whole runs."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import pytest
import torch
from closeness import one_rounding
from scheduler_grid import generators, run_plan
from sigma_scheduler_runs import STABLE_DIFFUSION, compare, reference_run

from retouch import schedulers

NAMES = [
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
]
STOCHASTIC = "KDPM2AncestralDiscreteScheduler"
TRAINED = torch.linspace(1e-4, 0.04, 200).tolist()
SPACED: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]


def predictions(name: str) -> list[str]:
    """Return the prediction types of a scheduler; the reference's KDPM2 takes no sample prediction."""
    return ["epsilon", "v_prediction"] + ([] if name.startswith("KDPM2") else ["sample"])


def runs(name: str) -> list[tuple[int, int]]:
    order = getattr(diffusers, name).order
    return [(1, 0), (2, order), (7, 0), (7, 3 * order), (20, 6 * order)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_whole_runs(name: str, spacing: str) -> None:
    for prediction, spaced in itertools.product(predictions(name), SPACED):
        settings = {"prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": 1}
        settings |= STABLE_DIFFUSION | spaced
        compare(name, settings, *runs(name), originals=True)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_five_steps(name: str) -> None:
    compare(name, STABLE_DIFFUSION, (25, 0), originals=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "trained_betas": TRAINED, "num_train_timesteps": len(TRAINED)},
    ],
    ids=["linear", "cosine", "trained"],
)
@pytest.mark.parametrize("karras", [False, True])
def test_other_training_schedules(name: str, betas: dict[str, Any], karras: bool) -> None:
    if name == STOCHASTIC and betas["beta_schedule"] == "squaredcos_cap_v2" and not karras:
        return  # NaN in the reference: tested by itself below
    compare(name, {**betas, "use_karras_sigmas": karras}, (6, 0), originals=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_ancestral_steps_from_huge_sigmas_are_numbers() -> None:
    """Here the reference's rounding leads to the root of a negative number."""
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    reference = reference_run(getattr(diffusers, STOCHASTIC)(**settings), 6, generator=generators(None))
    assert reference.latents[-1].isnan().all()
    ours = run_plan(getattr(schedulers, STOCHASTIC)(**settings), 6, generator=generators(None))
    assert all(latents.isfinite().all() for latents in ours.latents)


def test_heun_has_a_training_schedule_of_its_own() -> None:
    compare("HeunDiscreteScheduler", {"beta_schedule": "exp"}, (6, 0), originals=True)


def test_heun_clips_the_predicted_original() -> None:
    clipping = {"clip_sample": True, "clip_sample_range": 0.7}
    compare("HeunDiscreteScheduler", STABLE_DIFFUSION | clipping, (6, 0), originals=True)


def test_heun_takes_custom_timesteps() -> None:
    name = "HeunDiscreteScheduler"
    compare(name, STABLE_DIFFUSION, (None, 0), (None, 2), timesteps=[999, 640, 333, 5])
    compare(name, STABLE_DIFFUSION, (None, 0), timesteps=[700])


@pytest.mark.parametrize("spaced", SPACED, ids=str)
def test_one_generator_for_each_row(spaced: dict[str, Any]) -> None:
    compare(STOCHASTIC, STABLE_DIFFUSION | spaced, (5, 0), (5, 4), rows=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_reference_does(name: str, dtype: torch.dtype) -> None:
    compare(name, STABLE_DIFFUSION, (6, 0), dtype=dtype, tolerance=one_rounding(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_counts_its_evaluations_as_the_reference_does(name: str) -> None:
    ours, theirs = getattr(schedulers, name)(), getattr(diffusers, name)()
    assert ours.order == theirs.order == ours.plan(5).order
    theirs.set_timesteps(5)
    assert len(ours.plan(5)) == len(theirs.timesteps) == (9 if ours.order == 2 else 5)
