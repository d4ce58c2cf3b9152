"""`scheduler_grid.compare` for many runs of one scheduler, with the sigmas compared too."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from closeness import SCHEDULER, TABLE
from scheduler_grid import assert_same, generators, grid, run_diffusers_style, run_plan
from torch import Tensor

from retouch import schedulers

__all__ = ["STABLE_DIFFUSION", "assert_same_sigmas", "compare", "grid", "reference_run"]

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def reference_run(scheduler: Any, steps: int | None, **options: Any) -> Any:
    trace = run_diffusers_style(scheduler, steps, **options)
    if trace.timesteps.dtype == torch.float64:
        # If KDPM2 spaces sigmas, the reference's timesteps are float64, and its UNet rounds them to float32.
        # Ours are float32 from the start, because some accelerators have no float64.
        trace.timesteps = trace.timesteps.float()
    return trace


def assert_same_sigmas(ours: Tensor, theirs: Tensor) -> None:
    # After the final sigma, the reference's KDPM2 has two more zeros, which it does not use.
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs[: len(ours)], rtol=TABLE, atol=0)
    assert not theirs[len(ours) :].any()


def compare(
    name: str,
    config: dict[str, Any],
    *runs: tuple[int | None, int],
    tolerance: float = SCHEDULER,
    originals: bool = False,
    rows: int | None = None,
    **options: Any,
) -> float:
    """Run both libraries' scheduler `name` and compare; `rows` gives each row its own generator.

    Each run is a number of steps and a number of evaluations to leave out. One object of each library does
    all runs, ours twice each: as a plan and by the methods that diffusers has too.
    """
    theirs, ours = getattr(diffusers, name)(**config), getattr(schedulers, name)(**config)
    largest = 0.0
    for steps, start in runs:
        run = {"start": start, **options}
        reference = reference_run(theirs, steps, generator=generators(rows), **run)
        plain = run_plan(ours, steps, generator=generators(rows), **run)
        styled = run_diffusers_style(ours, steps, generator=generators(rows), **run)
        assert_same_sigmas(ours.sigmas, theirs.sigmas)
        for trace in (plain, styled):
            largest = max(largest, assert_same(trace, reference, tolerance, originals))
    return largest
