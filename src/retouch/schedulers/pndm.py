"""PNDM (arXiv:2202.09778): a linear multistep method, started by Runge-Kutta steps or by one repeated step.

A run that starts in the middle of the schedule makes these first steps there, as in diffusers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.errors import InputError
from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import NoiseSchedule, Settings, predicted_noise
from retouch.schedulers.plan import AlphaPlan, Step

_RUNGE_KUTTA_EVALUATIONS = 12  # three steps of four
_RUNGE_KUTTA_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
# The weights of Adams-Bashforth, newest prediction first, and their divisor.
_MULTISTEP_WEIGHTS = {1: ((1,), 1), 2: ((3, -1), 2), 3: ((23, -16, 5), 12), 4: ((55, -59, 37, -9), 24)}


class PNDMPlan(AlphaPlan):
    def __init__(
        self,
        settings: Settings,
        noise_schedule: NoiseSchedule,
        timesteps: np.ndarray,
        stride: int,
        **run: Any,
    ) -> None:
        self.stride = stride
        super().__init__(settings, noise_schedule, timesteps, **run)

    def forget(self) -> None:
        self.evaluations = 0
        self.predictions: list[Tensor] = []  # one per finished step, newest last
        self.weighted: Tensor | float = 0.0  # sum over the current Runge-Kutta step
        self.departure: Tensor | None = None  # the latents at the start of that step, or of the repeated one

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        timestep = int(self.timestep_values[step.index])
        evaluation = self.evaluations
        self.evaluations += 1
        if not self.settings["skip_prk_steps"] and evaluation < _RUNGE_KUTTA_EVALUATIONS:
            return self._runge_kutta(evaluation, prediction, timestep, latents), None
        return self._multistep(evaluation, prediction, timestep, latents), None

    def _runge_kutta(self, evaluation: int, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """Make one of a step's four evaluations. Each starts at `departure`; the fourth ends the step."""
        stage = evaluation % 4
        after = timestep if stage % 2 else timestep - self.stride // 2
        if stage == 0:
            self.predictions.append(prediction)
            self.departure = latents
        self.weighted = self.weighted + _RUNGE_KUTTA_WEIGHTS[stage] * prediction
        if stage == 3:
            prediction, self.weighted = self.weighted, 0.0
        assert self.departure is not None
        return self._transfer(
            self.departure, prediction, int(self.timestep_values[evaluation - stage]), after
        )

    def _multistep(self, evaluation: int, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        after = timestep - self.stride
        if evaluation == 1:
            # Repeat the first step with the mean of the slopes at both of its ends (Heun).
            timestep, after = timestep + self.stride, timestep
            assert self.departure is not None
            latents, self.departure = self.departure, None
            return self._transfer(latents, (prediction + self.predictions[-1]) / 2, timestep, after)
        self.predictions = [*self.predictions[-3:], prediction]
        if evaluation == 0:
            self.departure = latents
        weights, divisor = _MULTISTEP_WEIGHTS[len(self.predictions)]
        pairs = zip(weights, reversed(self.predictions), strict=True)
        mean = sum((weight * each for weight, each in pairs), start=prediction.new_zeros(())) / divisor
        return self._transfer(latents, mean, timestep, after)

    def _transfer(self, latents: Tensor, prediction: Tensor, timestep: int, after: int) -> Tensor:
        """Apply equation 9: move the latents between two timesteps with one predicted noise."""
        alpha, alpha_after = self.alpha(timestep), self.alpha(after)
        epsilon = predicted_noise(
            self.settings["prediction_type"], prediction, latents, alpha**0.5, (1 - alpha) ** 0.5
        )
        scale = alpha * (1 - alpha_after) ** 0.5 + (alpha * (1 - alpha) * alpha_after) ** 0.5
        return (alpha_after / alpha) ** 0.5 * latents - (alpha_after - alpha) * epsilon / scale


class PNDMScheduler(DiffusionScheduler):
    plan_class = PNDMPlan
    defaults: ClassVar[Settings] = {
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    }
    choices: ClassVar[Settings] = {"prediction_type": ("epsilon", "v_prediction")}

    def levels(self, steps: int | None, timesteps: Any, sigmas: Any) -> tuple[Any, ...]:
        assert steps is not None
        falling = self.space_timesteps(steps).astype(np.int64)
        stride = len(self) // steps
        if self.settings["skip_prk_steps"]:
            # The second timestep occurs twice, because PNDMPlan repeats the first step.
            return np.concatenate([falling[:2], falling[1:]]), stride
        if steps < 4:
            raise InputError(
                f"num_inference_steps is {steps}, but PNDM with its Runge-Kutta start takes 4 or more. Give "
                f"more steps, or make the scheduler with from_config(config, skip_prk_steps=True).",
                parameter="num_inference_steps",
            )
        ends = np.repeat(falling[:4], 2) + np.tile([stride // 2, 0], 4)
        return np.concatenate([np.repeat(ends[1:], 2)[1:-1], falling[3:]]), stride
