"""UnCLIP (arXiv:2204.06125): DDPM for diffusion priors, with its own timesteps and rounding."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.schedulers.ddpm import DDPMPlan
from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import Settings
from retouch.schedulers.scheduler import SchedulerOutput


class UnCLIPPlan(DDPMPlan):
    def alpha_and_beta(self, timestep: int, after: int) -> tuple[Tensor, Tensor]:
        # A step to the next timestep of training has a beta of the training schedule. Near the clean end, a
        # quotient of two products of alphas has only three correct digits of it.
        beta = super().alpha_and_beta(timestep, after)[1]
        if after == timestep - 1:
            beta = self.noise_schedule.betas[timestep]
        return 1 - beta, beta


class UnCLIPScheduler(DiffusionScheduler):
    plan_class = UnCLIPPlan
    common: ClassVar[Settings] = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    defaults: ClassVar[Settings] = {
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    choices: ClassVar[Settings] = {
        "beta_schedule": ("squaredcos_cap_v2",),
        "prediction_type": ("epsilon", "sample"),
        "variance_type": ("fixed_small_log", "learned_range"),
    }

    def space_timesteps(self, steps: int, **options: Any) -> np.ndarray:
        first = len(self) - 1
        # They include both ends of the training schedule; a single step starts from pure noise.
        return np.linspace(0, first, steps).round()[::-1] if steps > 1 else np.array([first])

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        prev_timestep: int | Tensor | None = None,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take a step. `prev_timestep` is accepted and ignored: a plan knows its next timestep."""
        return super().step(model_output, timestep, sample, **options)
