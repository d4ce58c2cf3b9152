"""DPM-Solver (multistep and singlestep) and UniPC compared with diffusers: all numbers of whole runs."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import pytest
import torch
from closeness import one_rounding
from scheduler_grid import difference, generators, grid, run_diffusers_style, run_plan
from sigma_scheduler_runs import STABLE_DIFFUSION, compare

from retouch import schedulers

MULTISTEP = "DPMSolverMultistepScheduler"
SINGLESTEP = "DPMSolverSinglestepScheduler"
UNIPC = "UniPCMultistepScheduler"
NAMES = [MULTISTEP, SINGLESTEP, UNIPC]
RUNS = [(1, 0), (2, 1), (7, 0), (7, 3), (16, 0)]  # from 15 steps on, DPM-Solver's last steps differ
SPACED: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
ENDS = [("dpmsolver", "sigma_min"), ("sde-dpmsolver", "sigma_min")]  # with final sigmas that they take
ENDS += list(itertools.product(["dpmsolver++", "sde-dpmsolver++"], ["zero", "sigma_min"]))

# These two algorithms are deprecated in the reference.
pytestmark = pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_whole_runs(name: str, spacing: str, prediction: str) -> None:
    settings: dict[str, Any] = {"prediction_type": prediction}
    if name != SINGLESTEP:
        settings |= {"timestep_spacing": spacing, "steps_offset": 1}
    elif spacing != "linspace":
        return  # it has no other
    for spaced in [*SPACED, *([{"use_lu_lambdas": True}] if name == MULTISTEP else [])]:
        compare(name, STABLE_DIFFUSION | settings | spaced, *RUNS)


@pytest.mark.parametrize(("algorithm", "end"), ENDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_multistep_solvers(algorithm: str, end: str, order: int, solver_type: str) -> None:
    if algorithm == "sde-dpmsolver" and order == 3:
        return  # the reference has no formula for this
    chosen = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver_type}
    for last in grid(lower_order_final=[True, False], euler_at_final=[True, False]):
        compare(MULTISTEP, STABLE_DIFFUSION | chosen | last | {"final_sigmas_type": end}, *RUNS, rows=2)


@pytest.mark.parametrize(("algorithm", "end"), ENDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_singlestep_solvers(algorithm: str, end: str, order: int, solver_type: str) -> None:
    if algorithm == "sde-dpmsolver":
        return  # not among this scheduler's
    chosen = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver_type}
    for lower in (True, False):
        for steps, start in [(1, 0), (2, 0), (5, 0), (6, 1), (6, 2), (9, 0)]:
            # One object for each run, because the reference's remembers that a count was uneven.
            settings = STABLE_DIFFUSION | chosen | {"lower_order_final": lower, "final_sigmas_type": end}
            compare(SINGLESTEP, settings, (steps, start), rows=2)


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_solvers(solver_type: str, order: int, predict_x0: bool) -> None:
    chosen = {"solver_type": solver_type, "solver_order": order, "predict_x0": predict_x0}
    for lower, corrector in itertools.product([True, False], [[], [0], [1, 3]]):
        settings = STABLE_DIFFUSION | chosen | {"lower_order_final": lower, "disable_corrector": corrector}
        compare(UNIPC, settings | {"final_sigmas_type": "sigma_min"}, *RUNS)
        if lower and predict_x0 and solver_type == "bh2":
            compare(UNIPC, settings, *RUNS)  # ends at zero, where the others become NaN


@pytest.mark.parametrize("settings", grid(solver_type=["bh1", "bh2"], lower_order_final=[True, False]))
def test_unipc_down_to_zero_is_a_picture_where_the_reference_has_none(settings: dict[str, Any]) -> None:
    if settings == {"solver_type": "bh2", "lower_order_final": True}:
        return  # here it has one
    theirs = run_diffusers_style(diffusers.UniPCMultistepScheduler(**STABLE_DIFFUSION, **settings), 7)
    assert not theirs.latents[-1].isfinite().all()
    ours = run_plan(schedulers.UniPCMultistepScheduler(**STABLE_DIFFUSION, **settings), 7)
    other = run_plan(schedulers.UniPCMultistepScheduler(**STABLE_DIFFUSION), 7)
    assert difference(ours.latents[-1], other.latents[-1]) < 0.1


def test_two_equal_sigmas_at_the_end_change_nothing() -> None:
    """Karras spacing ends at sigma_min, the final sigma; the reference's heun divides by their distance."""
    settings = {"solver_type": "heun", "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    theirs = run_diffusers_style(diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, **settings), 16)
    assert theirs.latents[-1].isnan().all()
    ours = run_plan(schedulers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, **settings), 16)
    assert torch.equal(ours.latents[-1], ours.latents[-2])


@pytest.mark.parametrize("name", [MULTISTEP, UNIPC])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_zero_terminal_snr(name: str, spacing: str) -> None:
    settings = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": spacing,
        "prediction_type": "v_prediction",
    }
    for order in (1, 2, 3):
        compare(name, STABLE_DIFFUSION | settings | {"solver_order": order}, *RUNS)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"])
def test_zero_terminal_snr_of_other_algorithms(algorithm: str) -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "algorithm_type": algorithm}
    settings |= {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"}
    compare(MULTISTEP, STABLE_DIFFUSION | settings, *RUNS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_thresholding(name: str, prediction: str) -> None:
    settings = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
    compare(name, STABLE_DIFFUSION | settings | {"prediction_type": prediction}, *RUNS)


def test_thresholding_of_predicted_noise() -> None:
    settings = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
    settings |= {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    compare(MULTISTEP, STABLE_DIFFUSION | settings, *RUNS)


@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
def test_learned_variance_is_left_out(name: str) -> None:
    """The reference always keeps three channels, so the latents here have three."""
    for algorithm, end in [("dpmsolver++", "zero"), ("dpmsolver", "sigma_min")]:
        settings = {"variance_type": "learned_range", "algorithm_type": algorithm, "final_sigmas_type": end}
        compare(name, STABLE_DIFFUSION | settings, (6, 0), shape=(2, 3, 6, 5), outputs=2)


@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
def test_custom_timesteps(name: str) -> None:
    compare(name, STABLE_DIFFUSION, (None, 0), (None, 2), timesteps=[999, 845, 730, 587, 443, 310, 193, 116])
    compare(name, STABLE_DIFFUSION, (None, 0), timesteps=[600])


@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_lambda_min_clipped(name: str, spacing: str) -> None:
    settings: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    if name == MULTISTEP:
        settings["timestep_spacing"] = spacing
    for spaced in [*SPACED, *([{"use_lu_lambdas": True}] if name == MULTISTEP else [])]:
        compare(name, settings | spaced, (6, 0), (6, 2))


@pytest.mark.parametrize("betas", grid(beta_schedule=["linear"], num_train_timesteps=[1000, 200]))
@pytest.mark.parametrize("name", NAMES)
def test_other_training_schedules(name: str, betas: dict[str, Any]) -> None:
    compare(name, betas, *RUNS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_rounds_where_the_reference_does(name: str, dtype: torch.dtype) -> None:
    exact = one_rounding(dtype)
    # UniPC's sums are grouped differently, so one value may be rounded differently.
    tolerance = 2 * exact if name == UNIPC else exact
    compare(name, STABLE_DIFFUSION, (6, 0), dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
def test_noise_is_drawn_in_the_dtype_of_the_reference(name: str, dtype: torch.dtype) -> None:
    settings = {"algorithm_type": "sde-dpmsolver++"}
    compare(name, STABLE_DIFFUSION | settings, (6, 0), dtype=dtype, tolerance=one_rounding(dtype))


def test_a_generator_is_left_where_the_reference_leaves_it() -> None:
    for name, options in [
        (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
        (SINGLESTEP, {"algorithm_type": "sde-dpmsolver++"}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
    ]:
        ours, theirs = generators(None), generators(None)
        run_plan(getattr(schedulers, name)(**options), 5, generator=ours)
        run_diffusers_style(getattr(diffusers, name)(**options), 5, generator=theirs)
        assert torch.equal(ours.get_state(), theirs.get_state())
