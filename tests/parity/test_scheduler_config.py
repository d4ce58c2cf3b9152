"""Scheduler configs pass between diffusers and us, as files and as objects, without losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
from scheduler_files import compare_files, settings_of

from retouch import schedulers

# By class, some options that are not defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "DDPMScheduler": {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
    "PNDMScheduler": {"skip_prk_steps": True, "beta_schedule": "scaled_linear"},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    "EulerAncestralDiscreteScheduler": {"rescale_betas_zero_snr": True},
    "LCMScheduler": {"original_inference_steps": 40},
    "TCDScheduler": {"trained_betas": [0.01, 0.02, 0.03], "num_train_timesteps": 3},
}
PAIRS = [(one, other) for one in OPTIONS for other in OPTIONS if one != other]


@pytest.mark.parametrize("name", OPTIONS)
def test_has_the_settings_and_defaults_of_its_counterpart(name: str) -> None:
    ours, theirs = getattr(schedulers, name), getattr(diffusers, name)
    assert settings_of(ours().config) == settings_of(theirs().config)


@pytest.mark.parametrize("name", OPTIONS)
def test_files_are_read_by_either_side(name: str, tmp_path: Path) -> None:
    compare_files(name, OPTIONS[name], tmp_path)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_conversion_chooses_the_settings_that_diffusers_would(one: str, other: str) -> None:
    """For a setting left at its default, the default of the other class counts."""
    our_one, their_one = getattr(schedulers, one), getattr(diffusers, one)
    our_other, their_other = getattr(schedulers, other), getattr(diffusers, other)
    theirs = their_one(**OPTIONS[one])
    expected = their_other.from_config(theirs.config)
    for source in (our_one(**OPTIONS[one]), theirs):
        converted = our_other.from_config(source.config)
        assert settings_of(converted.config) == settings_of(expected.config)
        assert settings_of(their_other.from_config(source.config).config) == settings_of(expected.config)
        back = our_one.from_config(converted.config)
        assert {key: back.settings[key] for key in OPTIONS[one]} == OPTIONS[one]
        assert back.settings == our_one(**OPTIONS[one]).settings
