"""The base of DPM-Solver and UniPC: their choice of noise levels, and an exponential integrator.

Both follow the latents over lambda = log(signal / noise). There the linear part of the equation has an exact
solution, and only the model's output (clean latents or noise) needs a polynomial through its latest values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor

from retouch.schedulers.diffusion import SigmaScheduler
from retouch.schedulers.noise_schedule import (
    Settings,
    chosen_sigma_spacing,
    limited_original,
    predicted_noise,
    predicted_original,
    respaced_sigmas,
)
from retouch.schedulers.plan import Step, UnitVarianceSigmaPlan

# The reference uses these classes for flow-matching models too. We do not, and refuse such settings.
FLOW: Settings = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
FLOW_CHOICES: Settings = {"use_flow_sigmas": (False,), "use_dynamic_shifting": (False,)}


class ExponentialPlan(UnitVarianceSigmaPlan):
    @property
    @abstractmethod
    def predicts_original(self) -> bool:
        """True if the polynomial goes through clean latents, False if through noise."""

    def forget(self) -> None:
        self.outputs: dict[int, Tensor] = {}  # the latest ones, by position in the schedule

    @cached_property
    def lambdas(self) -> Tensor:
        signal, noise = self.signal_and_noise(self.sigmas)
        return signal.log() - noise.log()

    def remember(self, step: Step, output: Tensor) -> None:
        self.outputs[step.index] = output
        # One more than the order, because UniPC's corrector starts from the level before.
        if len(self.outputs) > self.settings["solver_order"] + 1:
            del self.outputs[min(self.outputs)]

    def output(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the value that the polynomial goes through, and the clean latents if it needed them."""
        kind = self.settings["prediction_type"]
        signal, noise = self.signal_and_noise(self.sigmas[step.index])
        if self.predicts_original:
            original = predicted_original(kind, prediction, latents, signal, noise)
            original = limited_original(original, self.settings)
            return original, original
        epsilon = predicted_noise(kind, prediction, latents, signal, noise)
        if not self.settings["thresholding"]:
            return epsilon, None
        original = limited_original((latents - noise * epsilon) / signal, self.settings)
        return (latents - signal * original) / noise, original

    def integrator(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `kept`, `weight` and `z` of the interval between two levels.

        If the model's output is constant, the exact solution is
        latents_end = kept * latents_start - weight * expm1(z) * output.
        """
        signal, noise = self.signal_and_noise(self.sigmas[start])
        signal_end, noise_end = self.signal_and_noise(self.sigmas[end])
        interval = self.lambdas[end] - self.lambdas[start]
        if self.predicts_original:
            return noise_end / noise, signal_end, -interval
        return signal_end / signal, noise_end, interval

    def quotients(self, start: int, end: int, nodes: Iterable[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the distance of each node from `start` and the difference quotient of the output over it.

        The unit of distances is the interval from `start` to `end`.
        """
        interval, output = self.lambdas[end] - self.lambdas[start], self.outputs[start]
        distances = [(node, (self.lambdas[node] - self.lambdas[start]) / interval) for node in nodes]
        return [(distance, (1 / distance) * (self.outputs[node] - output)) for node, distance in distances]


class ExponentialScheduler(SigmaScheduler):
    plan_class: ClassVar[type[ExponentialPlan]]

    @property
    def timestep_end(self) -> int:
        """One above the highest timestep that a run may start from."""
        return len(self)

    def levels(
        self, steps: int | None, timesteps: Sequence[int | float] | None, sigmas: Sequence[float] | None
    ) -> tuple[np.ndarray, ...]:
        schedule, spacing = self.noise_schedule, chosen_sigma_spacing(self.settings)
        if timesteps is not None:
            self._refuse_two_spacings()
            chosen = np.asarray(timesteps).astype(np.int64)
        else:
            assert steps is not None
            chosen = self.space_timesteps(steps, drop_last=True, end=self.timestep_end)
        if spacing is None:
            levels = schedule.sigmas_at(chosen)
        else:
            # Over all sigmas of training, also those that the timestep spacing leaves out at its ends.
            assert steps is not None
            levels = respaced_sigmas(self.settings, schedule.sigmas[::-1], steps)
            chosen = self.rounded(schedule.timesteps_at(levels), spacing)
        return chosen.astype(np.int64), np.append(levels, self.final_sigma_after(levels))

    def rounded(self, timesteps: np.ndarray, spacing: str) -> np.ndarray:
        """Round the timesteps if the reference does; otherwise `levels` cuts off their fractions."""
        return timesteps.round() if spacing == "use_karras_sigmas" else timesteps

    def final_sigma_after(self, levels: np.ndarray) -> float:
        return self.final_sigma
