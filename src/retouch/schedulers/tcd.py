"""Trajectory consistency distillation (arXiv:2402.19159). `eta` is the paper's gamma."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from retouch.errors import InputError
from retouch.schedulers.lcm import DistilledScheduler
from retouch.schedulers.noise_schedule import predicted_noise, predicted_original
from retouch.schedulers.plan import AlphaPlan, Step
from retouch.schedulers.scheduler import SchedulerOutput


class TCDPlan(AlphaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        if not 0 <= self.eta <= 1:
            raise InputError(
                f"eta is {self.eta}. TCD takes 0 (no fresh noise) to 1 (as much as LCM). "
                f"Give a number in that range.",
                parameter="eta",
            )
        kind = self.settings["prediction_type"]
        alpha = self.alpha(int(self.timestep_values[step.index]))
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        original = predicted_original(kind, prediction, latents, signal, noise)
        epsilon = predicted_noise(kind, prediction, latents, signal, noise)
        # Go down to (1 - eta) times the next timestep, then back up with fresh noise. The product is float32,
        # as in the reference: another rounding could give another whole number.
        after = self.timestep_after(step, final=0)
        alpha_below = self.alpha(int(torch.floor((1 - self.eta) * torch.tensor(after))))
        moved = alpha_below**0.5 * original + (1 - alpha_below) ** 0.5 * epsilon
        if self.eta > 0 and not step.is_last:
            kept = self.alpha(after) / alpha_below
            moved = kept**0.5 * moved + (1 - kept) ** 0.5 * self.draw_noise(prediction)
        return moved, original


class TCDScheduler(DistilledScheduler):
    plan_class = TCDPlan

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        *,
        eta: float = 0.3,  # diffusers' default; its pipelines pass 0
        generator: Generator | Sequence[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        return super().step(
            model_output, timestep, sample, eta=eta, generator=generator, return_dict=return_dict
        )
