"""The flow-matching scheduler: exact on straight lines, at home in the loop, clear about wrong requests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close
from scheduler_grid import assert_same, drain, drive_plan, generators, noise_for
from torch import Tensor

import retouch
from retouch import schedulers
from retouch.errors import ConfigError, InputError
from retouch.sampling.denoise import denoise
from retouch.sampling.region import Region
from retouch.sampling.start import first_latents, shorten
from retouch.schedulers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from retouch.schedulers.foreign import as_plan

SHAPE = (2, 4, 6, 5)
ORIGINAL, NOISE = noise_for(SHAPE, 1), noise_for(SHAPE, 2)


def run(plan: Any, latents: Tensor, region: Region | None = None) -> Tensor:
    """Drain the loop with a model that predicts the velocity from `NOISE` to `ORIGINAL` exactly."""
    *_, last = denoise(lambda latents, step: NOISE - ORIGINAL, plan, latents, region)
    return last.latents


@pytest.mark.parametrize("steps", [1, 4, 25])
@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"use_karras_sigmas": True}], ids=str)
def test_a_straight_line_is_followed_exactly(steps: int, settings: dict[str, Any]) -> None:
    plan = FlowMatchEulerDiscreteScheduler(**settings).plan(steps)
    assert plan.initial_sigma == 1
    assert_close(run(plan, first_latents(plan, NOISE)), ORIGINAL)


def test_strength_starts_on_the_line_at_the_level_of_the_first_step() -> None:
    plan, kept = shorten(FlowMatchEulerDiscreteScheduler(shift=3.0).plan(10), 10, 0.4)
    first = next(iter(plan))
    assert kept == len(plan) == 4
    level = plan.level(first)
    assert level == float(first.timestep / 1000)
    latents = first_latents(plan, NOISE, ORIGINAL)
    assert_close(latents, (1 - level) * ORIGINAL + level * NOISE)
    assert_close(run(plan, latents), ORIGINAL)


def test_a_region_keeps_the_original_outside_the_mask() -> None:
    plan = FlowMatchEulerDiscreteScheduler().plan(6)
    other = noise_for(SHAPE, 3)
    repaint = torch.zeros(2, 1, 6, 5)
    repaint[..., :3, :] = 1
    found = run(plan, NOISE, Region(other, repaint, NOISE))
    assert torch.equal(found[..., 3:, :], other[..., 3:, :])
    assert torch.equal(found[..., :3, :], run(plan, NOISE)[..., :3, :])
    assert torch.equal(run(plan, NOISE, Region(other, torch.zeros(2, 1, 6, 5), NOISE)), other)


def test_levels_are_sigmas_and_fall_from_one() -> None:
    plan = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).plan(8, mu=1.15)
    levels = [plan.level(step) for step in plan]
    assert levels[0] == 1 and levels == sorted(levels, reverse=True) and levels[-1] > 0
    assert levels == plan.sigmas[:-1].tolist() and plan.sigmas[-1] == 0
    # Custom timesteps stay as given; only the sigmas are shifted.
    plan = FlowMatchEulerDiscreteScheduler(shift=3.0).plan(timesteps=[1000, 500])
    assert plan.timesteps.tolist() == [1000, 500]
    assert [plan.level(step) for step in plan] == [1, 0.75]


def test_more_tokens_shift_further_towards_noise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    small, large = (scheduler.plan(8, mu=scheduler.mu_for(tokens)).sigmas for tokens in (256, 4096))
    assert (large[1:-1] > small[1:-1]).all()
    assert scheduler.mu_for(256) == 0.5 and scheduler.mu_for(4096) == 1.15


def test_mu_without_dynamic_shifting_changes_nothing() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.equal(scheduler.plan(8, mu=0.7).sigmas, scheduler.plan(8).sigmas)


def test_a_single_step_ignores_the_terminal_shift() -> None:
    plan = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02).plan(1)
    assert plan.sigmas.tolist() == [1, 0]


def test_two_plans_of_one_scheduler_do_not_disturb_each_other() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)

    def one(steps: int) -> Any:
        return drive_plan(scheduler.plan(steps, generator=generators(None)), shape=(1, 4, 4, steps))

    alone = [drain(one(6)), drain(one(6))]
    together = list(zip(one(6), one(6), strict=True))[-1]
    for trace, expected in zip(together, alone, strict=True):
        assert_same(trace, expected, tolerance=0)


def test_is_found_by_its_name() -> None:
    assert retouch.FlowMatchEulerDiscreteScheduler is FlowMatchEulerDiscreteScheduler
    assert schedulers.by_name("FlowMatchEulerDiscreteScheduler") is FlowMatchEulerDiscreteScheduler
    assert not hasattr(FlowMatchEulerDiscreteScheduler(), "alphas_cumprod")


@pytest.mark.parametrize(
    "settings",
    [{"invert_sigmas": True}, {"time_shift_type": "quadratic"}, {"beta_start": 0.1}],
    ids=str,
)
def test_settings_that_are_not_supported_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FlowMatchEulerDiscreteScheduler(**settings)


@pytest.mark.parametrize(
    ("settings", "given", "parameter", "message"),
    [
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 4}, "mu", "use_dynamic_shifting"),
        ({}, {"sigmas": [1.0, 0.5, 0.0]}, "sigmas", "above 0"),
        ({}, {"sigmas": [14.6, 0.5]}, "sigmas", "at most 1"),
        ({}, {"sigmas": [0.5, 1.0]}, "sigmas", "smaller than the one before"),
        ({}, {"timesteps": [1001, 500]}, "timesteps", "at most 1000"),
        ({}, {"timesteps": [500, 500]}, "timesteps", "smaller than the one before"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met_are_refused(
    settings: Any, given: Any, parameter: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FlowMatchEulerDiscreteScheduler(**settings).plan(**given)
    assert caught.value.parameter == parameter


def test_mu_needs_a_flow_matching_scheduler() -> None:
    with pytest.raises(InputError, match="takes no mu") as caught:
        as_plan(EulerDiscreteScheduler(), 4, mu=0.5)
    assert caught.value.parameter == "scheduler"


def test_diffusion_models_are_not_sent_to_a_flow_matching_scheduler() -> None:
    with pytest.raises(InputError, match="does not take custom sigmas") as caught:
        DDIMScheduler().plan(sigmas=[9.0, 0.0])
    assert "FlowMatch" not in str(caught.value)
