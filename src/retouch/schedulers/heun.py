"""Heun's method (arXiv:2206.00364, algorithm 1 without churn).

An Euler step gives the slope at its end; the step is then repeated with the mean of both slopes. That takes
two model evaluations for each step, and one for the last.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.schedulers.diffusion import SigmaScheduler
from retouch.schedulers.noise_schedule import (
    BETA_SCHEDULES,
    Settings,
    limited_original,
    predicted_original_at_sigma,
)
from retouch.schedulers.plan import SigmaPlan, Step


class HeunPlan(SigmaPlan):
    order = 2

    def forget(self) -> None:
        self.halfway: tuple[Tensor, Tensor] | None = (
            None  # the latents and the slope at the start of the step
        )

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma = self.sigmas[step.index]
        original = predicted_original_at_sigma(self.settings["prediction_type"], prediction, latents, sigma)
        original = limited_original(original, self.settings)
        slope = (latents - original) / sigma
        if self.halfway is None:
            self.halfway = latents, slope
            moved = latents + slope * (self.sigmas[step.index + 1] - sigma)
        else:
            start, first_slope = self.halfway
            self.halfway = None
            moved = start + (first_slope + slope) / 2 * (sigma - self.sigmas[step.index - 1])
        return moved, original


class HeunDiscreteScheduler(SigmaScheduler):
    plan_class = HeunPlan
    accepts = ("timesteps",)
    defaults: ClassVar[Settings] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
    }
    choices: ClassVar[Settings] = {"beta_schedule": (*BETA_SCHEDULES, "exp")}

    def levels(self, *request: Any) -> tuple[np.ndarray, ...]:
        chosen, levels = super().levels(*request)
        # The second evaluation of a step happens at the level where the next step starts.
        return (
            np.concatenate([chosen[:1], chosen[1:].repeat(2)]),
            np.concatenate([levels[:1], levels[1:-1].repeat(2), levels[-1:]]),
        )
