"""A scheduler object of diffusers runs in our plan as in diffusers' loop, and is not changed."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from scheduler_grid import assert_same, drain, drive_plan, generators, run_diffusers_style

from retouch.errors import InputError
from retouch.schedulers import DDIMScheduler
from retouch.schedulers.foreign import as_plan

NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", [0, 2])
def test_runs_as_in_its_own_loop(name: str, start: int) -> None:
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(**options)
    before = copy.deepcopy(vars(scheduler))

    def plan() -> Any:
        return as_plan(scheduler, 6, generator=generators(None), eta=0.4).after(start)

    ours = drain(drive_plan(plan(), noised_first=start > 0))
    assert str(vars(scheduler)) == str(before)
    again, other = drive_plan(plan(), noised_first=start > 0), drive_plan(plan(), noised_first=start > 0)
    *_, (interleaved, _) = zip(again, other, strict=True)

    reference = run_diffusers_style(
        getattr(diffusers, name)(**options), 6, start=start, generator=generators(None), eta=0.4
    )
    assert assert_same(ours, reference) == 0
    assert assert_same(interleaved, reference) == 0


def test_a_plan_of_a_foreign_scheduler_can_run_twice() -> None:
    plan = as_plan(diffusers.UniPCMultistepScheduler(), 5)
    assert_same(drain(drive_plan(plan)), drain(drive_plan(plan)), tolerance=0)


def test_custom_timesteps_and_sigmas_are_passed_on_or_refused() -> None:
    assert as_plan(diffusers.DDPMScheduler(), timesteps=[800, 20]).timesteps.tolist() == [800, 20]
    assert len(as_plan(diffusers.EulerDiscreteScheduler(), sigmas=[9.0, 2.0, 0.0])) == 2
    with pytest.raises(InputError, match=r"does not take custom sigmas.*EulerDiscreteScheduler"):
        as_plan(diffusers.DDIMScheduler(), sigmas=[9.0, 2.0, 0.0])
    with pytest.raises(InputError, match="1 to 1000"):
        as_plan(diffusers.EulerDiscreteScheduler(), 1001)


def test_the_facts_that_a_loop_needs() -> None:
    plan = as_plan(diffusers.HeunDiscreteScheduler(), 4)
    assert plan.order == 2 and len(plan) == 7
    first, second = list(plan)[:2]
    assert first.next is second and plan.level(first) == pytest.approx(0.999)


def test_takes_ours_and_refuses_what_is_no_scheduler() -> None:
    plan = as_plan(DDIMScheduler(), 3, eta=0.5)
    assert len(plan) == 3 and plan.eta == 0.5
    with pytest.raises(InputError, match="set_timesteps, step"):
        as_plan(torch.nn.Linear(1, 1), 3)
