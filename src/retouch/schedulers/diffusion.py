"""Bases of the schedulers for models that were trained on a list of betas, over timesteps or over sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.errors import InputError
from retouch.schedulers.noise_schedule import (
    SMALLEST_ALPHA,
    NoiseSchedule,
    Settings,
    chosen_sigma_spacing,
    make_betas,
    respaced_sigmas,
    spaced_timesteps,
)
from retouch.schedulers.plan import AlphaPlan, Plan, SigmaPlan
from retouch.schedulers.scheduler import Scheduler


class DiffusionScheduler(Scheduler):
    """Base of the schedulers for models that were trained on a list of betas."""

    common: ClassVar[Settings] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "steps_offset": 0,
    }
    plan_class: ClassVar[type[AlphaPlan] | type[SigmaPlan]]
    last_alpha: ClassVar[float | None] = None  # replaces the last alpha under zero terminal SNR

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        last_alpha = self.last_alpha if self.settings.get("rescale_betas_zero_snr") else None
        return NoiseSchedule(make_betas(self.settings), last_alpha)

    @property
    def betas(self) -> Tensor:
        return self.noise_schedule.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.noise_schedule.alphas_cumprod

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int | float] | None = None,
        sigmas: Sequence[float] | None = None,
        **run: Any,
    ) -> Plan:
        self._check_request(num_inference_steps, timesteps, sigmas)
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        return self.plan_class(self.settings, self.noise_schedule, *levels, **run)

    def levels(
        self, steps: int | None, timesteps: Sequence[int | float] | None, sigmas: Sequence[float] | None
    ) -> tuple[np.ndarray, ...]:
        """Return the levels that the plan class takes: the timesteps and, for most classes, the sigmas."""
        if timesteps is not None:
            values = np.asarray(timesteps)
            self._check_falling("timesteps", values)
            return (values,)
        assert steps is not None
        return (self.space_timesteps(steps),)

    def space_timesteps(self, steps: int, **options: Any) -> np.ndarray:
        """Return the decreasing timesteps that the settings choose, float64."""
        spacing, offset = self.settings.get("timestep_spacing", "linspace"), self.settings["steps_offset"]
        return spaced_timesteps(spacing, steps, len(self), offset=offset, **options)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.noise_schedule.mix(original_samples, noise, timesteps)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.noise_schedule.velocity(sample, noise, timesteps)


class SigmaScheduler(DiffusionScheduler):
    """Base of the schedulers that step from sigma to sigma."""

    plan_class: ClassVar[type[SigmaPlan]]
    last_alpha = SMALLEST_ALPHA

    def levels(
        self, steps: int | None, timesteps: Sequence[int | float] | None, sigmas: Sequence[float] | None
    ) -> tuple[np.ndarray, ...]:
        schedule = self.noise_schedule
        if sigmas is not None:
            values = np.asarray(sigmas, dtype=np.float32)
            return schedule.timesteps_at(values[:-1]).astype(np.float32), values
        if timesteps is not None:
            self._refuse_two_spacings()
            chosen = np.asarray(timesteps, dtype=np.float32)
        else:
            assert steps is not None
            chosen = self.space_timesteps(steps, rounded=False).astype(np.float32)
        levels = respaced_sigmas(self.settings, schedule.sigmas_at(chosen), len(chosen))
        if chosen_sigma_spacing(self.settings) is not None:
            chosen = schedule.timesteps_at(levels).astype(np.float32)
        return chosen, np.append(levels, self.final_sigma)

    def _refuse_two_spacings(self) -> None:
        spacing = chosen_sigma_spacing(self.settings)
        if spacing is not None:
            raise InputError(
                f"Custom timesteps and {spacing} = True contradict each other: both choose the sigmas. "
                f"Leave out timesteps, or make the scheduler with from_config(config, {spacing}=False).",
                parameter="timesteps",
            )

    @property
    def final_sigma(self) -> float:
        """The sigma at which the last step ends: 0, or the smallest of training."""
        is_smallest = self.settings.get("final_sigmas_type", "zero") == "sigma_min"
        return float(self.noise_schedule.sigmas[0]) if is_smallest else 0.0

    @property
    def sigmas(self) -> Tensor:
        return self._current.sigmas  # type: ignore[attr-defined]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise to the level of `timesteps`; after `set_begin_index`, to that of the run's next step."""
        indices = self._indices_to_noise_to(timesteps)
        return self._current.noised_at(original_samples, noise, indices)  # type: ignore[attr-defined]
