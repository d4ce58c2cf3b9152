"""UnCLIP (arXiv:2204.06125): DDPM as diffusion priors use it, with its own timesteps and rounding."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.schedulers.ddpm import DDPMPlan
from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import Settings
from retouch.schedulers.scheduler import SchedulerOutput


class UnCLIPPlan(DDPMPlan):
    def share_of_step(self, timestep: int, after: int) -> tuple[Tensor, Tensor]:
        # Where no timestep is left out, the training's own beta. Near the clean end, where the last step
        # is, the quotient of two products of alphas holds but three digits of it.
        beta = super().share_of_step(timestep, after)[1]
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

    def space_timesteps(self, steps: int, **how: Any) -> np.ndarray:
        first = len(self) - 1
        # Both ends of the training's timesteps are among them; a single step starts from pure noise.
        return np.linspace(0, first, steps).round()[::-1] if steps > 1 else np.array([first])

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        prev_timestep: int | Tensor | None = None,
        **how: Any,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """`prev_timestep` is for old code: a plan knows where its step goes."""
        return super().step(model_output, timestep, sample, **how)
