"""Where a run starts: what strength leaves of the schedule, and the first latents."""

from __future__ import annotations

import re

import pytest
import torch
from closeness import assert_close
from hypothesis import given, strategies
from sampling_fakes import FakePlan

from retouch.errors import InputError
from retouch.sampling.start import first_latents, shorten


def plan_of(steps: int, order: int = 1, extra: int = 0) -> FakePlan:
    return FakePlan([1 - index / 2000 for index in range(steps * order + extra)], order)


@pytest.mark.parametrize(
    ("steps", "strength", "kept"), [(50, 1.0, 50), (50, 0.6, 30), (50, 0.99, 49), (4, 0.3, 1), (10, 0.3, 3)]
)
def test_strength_is_the_share_of_steps_that_run(steps: int, strength: float, kept: int) -> None:
    part, requested = shorten(plan_of(steps), steps, strength)
    assert len(part) == requested == kept
    assert [step.index for step in part] == list(range(steps - kept, steps))


def test_a_step_of_two_evaluations_is_left_out_as_a_whole() -> None:
    part, requested = shorten(plan_of(10, order=2, extra=-1), 10, 0.4)
    assert requested == 4 and len(part) == 7


def test_a_warm_up_counts_as_steps_of_the_schedule() -> None:
    part, requested = shorten(plan_of(10, extra=1), 10, 0.5)
    assert requested == 5 and len(part) == 6


@given(
    steps=strategies.integers(1, 400),
    strength=strategies.floats(0, 1),
    order=strategies.sampled_from([1, 2]),
)
def test_the_advice_of_the_refusal_works(steps: int, strength: float, order: int) -> None:
    try:
        part, requested = shorten(plan_of(steps, order), steps, strength)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"strength={strength} leaves none of the {steps} steps")
        lowest = float(re.search(r"use strength=([\d.]+) or more", message)[1])
        assert len(shorten(plan_of(steps, order), steps, lowest)[0]) > 0
        if found := re.search(r"or (\d+) steps or more", message):
            enough = int(found[1])
            assert enough > steps
            assert len(shorten(plan_of(enough, order), enough, strength)[0]) > 0
    else:
        assert requested >= 1 and len(part) >= 1


def test_a_custom_schedule_of_order_two_that_is_too_short() -> None:
    """Its seven evaluations count as seven steps, of which skipping four means eight evaluations."""
    with pytest.raises(InputError, match=r"use strength=0\.572 or more\.$"):
        shorten(FakePlan([0.9, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1], 2), 7, 0.5)
    assert len(shorten(FakePlan([0.9, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1], 2), 7, 0.572)[0]) == 1


def test_first_latents() -> None:
    noise, original = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    plan = FakePlan()
    assert torch.equal(first_latents(plan, noise), noise * 10)
    later = plan.after(2)
    started = first_latents(later, noise, original)
    assert_close(started, 0.5 * original + 0.5 * noise)
