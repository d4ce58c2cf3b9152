"""The one denoising loop that every family and every task runs.

It is a generator: a caller drains it, shows progress from it, or stops iterating to cancel. It knows neither
models nor guidance (see predict.py) nor the meaning of a mask (see region.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from retouch.sampling.region import Region
from retouch.schedulers.plan import Plan, Step


@dataclass
class Progress:
    """The state of a run after a step. A callback may replace `latents`."""

    step: Step
    latents: Tensor


def denoise(
    predict: Callable[[Tensor, Step], Tensor], plan: Plan, latents: Tensor, region: Region | None = None
) -> Iterator[Progress]:
    """Yield after every step of `plan`; stop iterating to cancel."""
    for step in plan:
        latents = plan.advance(predict(latents, step), step, latents)
        if region is not None:
            latents = region.restore_outside(latents, plan, step)
        progress = Progress(step, latents)
        yield progress
        latents = progress.latents
