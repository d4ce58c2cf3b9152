"""Configs of the sigma schedulers: files and conversions lead to the reference's settings and latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
from scheduler_files import compare_files, settings_of
from scheduler_grid import assert_same, generators, run_diffusers_style, run_plan
from sigma_scheduler_runs import reference_run

from retouch import schedulers

# By class, some options that are not defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": {"use_karras_sigmas": True, "clip_sample": True},
    "KDPM2DiscreteScheduler": {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
    "KDPM2AncestralDiscreteScheduler": {"use_exponential_sigmas": True},
    "LMSDiscreteScheduler": {"beta_schedule": "scaled_linear", "steps_offset": 3},
    "DPMSolverMultistepScheduler": {"solver_type": "heun", "euler_at_final": True, "solver_order": 3},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    "UniPCMultistepScheduler": {"solver_type": "bh1", "disable_corrector": [0, 1], "thresholding": True},
}
OTHERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    "DDPMScheduler": {"variance_type": "fixed_large", "thresholding": True},
}
PAIRS = [(one, other) for one in [*OPTIONS, *OTHERS] for other in OPTIONS if one != other]

# The config of Stable Diffusion 1.5, and the DDIM config of many of its descendants.
PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
DDIM = {**PNDM, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
del DDIM["skip_prk_steps"]


def without_idle_offset(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the `steps_offset` that our single-step DPM-Solver has and does not use."""
    idle = name == "DPMSolverSinglestepScheduler" and settings.get("steps_offset") == 0
    return {key: value for key, value in settings.items() if not (idle and key == "steps_offset")}


@pytest.mark.parametrize("name", OPTIONS)
def test_has_the_settings_and_defaults_of_its_counterpart(name: str) -> None:
    ours, theirs = getattr(schedulers, name), getattr(diffusers, name)
    assert without_idle_offset(name, settings_of(ours().config)) == settings_of(theirs().config)


@pytest.mark.parametrize("name", OPTIONS)
def test_files_are_read_by_either_side(name: str, tmp_path: Path) -> None:
    compare_files(name, OPTIONS[name], tmp_path)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_conversion_chooses_the_settings_that_diffusers_would(one: str, other: str) -> None:
    """For a setting left at its default, the default of the other class counts."""
    options = OPTIONS.get(one, OTHERS.get(one, {}))
    ours, theirs = getattr(schedulers, one)(**options), getattr(diffusers, one)(**options)
    expected = getattr(diffusers, other).from_config(theirs.config)
    for source in (ours, theirs):
        converted = getattr(schedulers, other).from_config(source.config)
        found = without_idle_offset(other, settings_of(converted.config))
        assert found == without_idle_offset(other, settings_of(expected.config))
        back = type(ours).from_config(converted.config)
        # As in the reference, a solver_type that the other class lacks is replaced by its nearest for good.
        kept = {key: value for key, value in options.items() if key != "solver_type"}
        assert {key: back.settings[key] for key in kept} == kept


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("config", [PNDM, DDIM], ids=["PNDM", "DDIM"])
def test_takes_over_a_checkpoint(name: str, config: dict[str, Any]) -> None:
    """Users make another scheduler from a checkpoint's config, and the first one again from that."""
    theirs = getattr(diffusers, name).from_config(config)
    ours = getattr(schedulers, name).from_config(config)
    for steps in (3, 8):
        reference = reference_run(theirs, steps, generator=generators(None))
        assert_same(run_plan(ours, steps, generator=generators(None)), reference)

    source = config["_class_name"]
    back = getattr(schedulers, source).from_config(ours.config)
    assert {key: back.config[key] for key in settings_of(config)} == settings_of(config)
    expected = getattr(diffusers, source).from_config(theirs.config)
    assert_same(run_plan(back, 5), run_diffusers_style(expected, 5))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"solver_type": "logrho"}),
        ("DPMSolverMultistepScheduler", {"solver_type": "bh1"}),
        ("DPMSolverSinglestepScheduler", {"solver_type": "bh2"}),
        ("UniPCMultistepScheduler", {"solver_type": "midpoint"}),
        ("UniPCMultistepScheduler", {"solver_type": "heun"}),
    ],
    ids=str,
)
def test_words_of_related_solvers_mean_the_nearest(name: str, changes: dict[str, Any]) -> None:
    ours = getattr(schedulers, name).from_config(PNDM, **changes)
    theirs = getattr(diffusers, name).from_config(PNDM, **changes)
    assert ours.config["solver_type"] == theirs.config["solver_type"] != changes["solver_type"]


def test_deis_means_the_nearest_algorithm() -> None:
    """The reference needs final_sigmas_type "sigma_min" for it; the nearest algorithm does not."""
    changes = {"algorithm_type": "deis", "solver_type": "logrho"}
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(PNDM, **changes, final_sigmas_type="sigma_min")
    ours = schedulers.DPMSolverMultistepScheduler.from_config(PNDM, **changes)
    for key in changes:
        assert ours.config[key] == theirs.config[key] != changes[key]


@pytest.mark.parametrize("name", OPTIONS)
def test_driven_without_a_begin_index(name: str) -> None:
    """The first timestep is the start of the run, as in the reference's text2image."""
    ours, theirs = getattr(schedulers, name).from_config(PNDM), getattr(diffusers, name).from_config(PNDM)
    for scheduler in (ours, theirs):
        scheduler.set_begin_index = lambda start: None
    runs = [run_diffusers_style(each, 6, generator=generators(None)) for each in (ours, theirs)]
    assert_same(*runs)
