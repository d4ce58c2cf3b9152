"""Flow-matching Euler compared with diffusers: all numbers of whole runs, for many settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_equal
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from scheduler_files import compare_files, settings_of
from scheduler_grid import assert_same, drain, drive_plan, generators, grid, noise_for, run_diffusers_style
from sigma_scheduler_runs import compare

from retouch import schedulers
from retouch.schedulers.foreign import as_plan

NAME = "FlowMatchEulerDiscreteScheduler"
RUNS = [(1, 0), (2, 0), (7, 0), (7, 3), (28, 12)]
SPACED = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
SHIFTS = grid(time_shift_type=["exponential", "linear"], shift=[1.0, 3.0])
FLUX = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def both(**settings: Any) -> tuple[Any, Any]:
    return getattr(schedulers, NAME)(**settings), getattr(diffusers, NAME)(**settings)


@pytest.mark.parametrize("shift", [1.0, 1.15, 3.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_fixed_shift(shift: float, stochastic: bool) -> None:
    for spaced in SPACED:
        settings = {"shift": shift, "stochastic_sampling": stochastic, **spaced}
        compare(NAME, settings, *RUNS, rows=2 if stochastic else None)


@pytest.mark.parametrize(
    "settings", grid(time_shift_type=["exponential", "linear"], shift=[1.0, 3.0]), ids=str
)
@pytest.mark.parametrize("mu", [0.5, 0.8123, 1.15])
def test_dynamic_shifting(settings: dict[str, Any], mu: float) -> None:
    for spaced in SPACED:
        compare(NAME, {**FLUX, **settings, **spaced}, *RUNS, mu=mu)


@pytest.mark.parametrize("terminal", [0.02, 0.1])
def test_the_last_sigma_can_be_fixed(terminal: float) -> None:
    compare(NAME, {**FLUX, "shift_terminal": terminal}, *RUNS[1:], mu=0.8)
    compare(NAME, {"shift": 3.0, "shift_terminal": terminal}, *RUNS[1:])


@pytest.mark.filterwarnings("ignore:.*timesteps")
@pytest.mark.parametrize(
    "custom",
    [
        {"sigmas": np.linspace(1.0, 1 / 6, 6).tolist()},
        {"sigmas": [0.7]},
        {"timesteps": [1000, 640.5, 333, 5]},
        {"timesteps": [700]},
    ],
    ids=str,
)
def test_custom_schedules(custom: dict[str, list[float]]) -> None:
    length = len(next(iter(custom.values())))
    for start in {0, length // 2}:
        compare(NAME, {}, (None, start), **custom)
        compare(NAME, {"shift": 3.0}, (None, start), **custom)
        compare(NAME, FLUX, (None, start), mu=0.9, **custom)


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"shift": 3.0, "stochastic_sampling": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_reference_does(settings: dict[str, Any], dtype: torch.dtype) -> None:
    compare(NAME, settings, (6, 0), dtype=dtype, tolerance=torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, FLUX, {"num_train_timesteps": 200}], ids=str)
def test_training_reads_timesteps_and_noises_without_a_run(settings: dict[str, Any]) -> None:
    ours, theirs = (
        schedulers.FlowMatchEulerDiscreteScheduler(**settings),
        getattr(diffusers, NAME)(**settings),
    )
    assert torch.equal(ours.timesteps, theirs.timesteps)
    rows = theirs.timesteps[[3, 150]]
    noised = [
        each.scale_noise(noise_for((2, 4, 3, 3), 1), rows, noise_for((2, 4, 3, 3), 2))
        for each in (ours, theirs)
    ]
    assert_equal(*noised)


def test_driven_without_a_begin_index() -> None:
    ours, theirs = both(**FLUX)
    for scheduler in (ours, theirs):
        scheduler.set_begin_index = lambda start: None
    runs = [run_diffusers_style(each, 6, mu=0.7, generator=generators(None)) for each in (ours, theirs)]
    assert_same(*runs)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 4200])
def test_mu_for_a_number_of_tokens(tokens: int) -> None:
    assert schedulers.FlowMatchEulerDiscreteScheduler(**FLUX).mu_for(tokens) == calculate_shift(tokens)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_scheduler_of_diffusers_runs_as_one_of_our_plans(start: int, stochastic: bool) -> None:
    settings = {**FLUX, "stochastic_sampling": stochastic}
    plan = as_plan(getattr(diffusers, NAME)(**settings), 6, mu=0.9, generator=generators(None)).after(start)
    found = drain(drive_plan(plan, noised_first=start > 0))
    reference = getattr(diffusers, NAME)(**settings)
    expected = run_diffusers_style(reference, 6, start=start, mu=0.9, generator=generators(None))
    assert assert_same(found, expected) == 0
    ours = as_plan(
        schedulers.FlowMatchEulerDiscreteScheduler(**settings), 6, mu=0.9, generator=generators(None)
    )
    assert_same(drain(drive_plan(ours.after(start), noised_first=start > 0)), expected)


def test_settings_and_files_are_those_of_diffusers(tmp_path: Path) -> None:
    ours, theirs = both()
    assert settings_of(ours.config) == settings_of(theirs.config)
    compare_files(NAME, {**FLUX, "shift_terminal": 0.02, "time_shift_type": "linear"}, tmp_path)
