"""DPM-Solver-2 over sigma (arXiv:2206.00364, algorithm 2 with a midpoint), and its ancestral form.

A step goes to its middle in log sigma, takes the slope there, and applies it to the whole step from the
start. That takes two model evaluations for each step, and one for the last.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from retouch.schedulers.diffusion import SigmaScheduler
from retouch.schedulers.noise_schedule import (
    NoiseSchedule,
    Settings,
    ancestral_sigmas,
    chosen_sigma_spacing,
    predicted_original_at_sigma,
)
from retouch.schedulers.plan import SigmaPlan, Step


class KDPM2Plan(SigmaPlan):
    """A plan with two lists of sigmas: `input_sigmas` for the latents, `sigmas` for noising the original.

    They differ on the second evaluation of a step. The latents are then in its middle, and the original is
    noised to its end. So the reference blends in an original that is slightly too clean; we do the same to
    get the same pixels.
    """

    order = 2

    def __init__(
        self,
        settings: Settings,
        noise_schedule: NoiseSchedule,
        timesteps: np.ndarray,
        sigmas: np.ndarray,
        input_sigmas: np.ndarray,
        **run: Any,
    ) -> None:
        self.input_sigmas = torch.from_numpy(input_sigmas)  # of each evaluation, and the final one
        super().__init__(settings, noise_schedule, timesteps, sigmas, **run)

    def forget(self) -> None:
        self.start_of_step: Tensor | None = None

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        return latents / (self.input_sigmas[step.index] ** 2 + 1) ** 0.5

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma = self.input_sigmas[step.index]
        original = predicted_original_at_sigma(self.settings["prediction_type"], prediction, latents, sigma)
        slope = (latents - original) / sigma
        if self.start_of_step is None:
            self.start_of_step = latents
            moved = latents + slope * (self.input_sigmas[step.index + 1] - sigma)
        else:
            start, self.start_of_step = self.start_of_step, None
            moved = self.whole_step(start, slope, step, prediction)
        return moved, original

    def whole_step(self, start: Tensor, slope: Tensor, step: Step, prediction: Tensor) -> Tensor:
        return start + slope * (self.sigmas[step.index] - self.sigmas[step.index - 1])


class KDPM2AncestralPlan(KDPM2Plan):
    def whole_step(self, start: Tensor, slope: Tensor, step: Step, prediction: Tensor) -> Tensor:
        sigma, sigma_next = self.sigmas[step.index - 1], self.sigmas[step.index]
        down, up = ancestral_sigmas(sigma, sigma_next)
        return start + slope * (down - sigma) + self.draw_noise(prediction) * up


class KDPM2DiscreteScheduler(SigmaScheduler):
    plan_class = KDPM2Plan
    defaults: ClassVar[Settings] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "timestep_spacing": "linspace",
    }

    def levels(self, *request: Any) -> tuple[np.ndarray, ...]:
        chosen, levels = super().levels(*request)
        if chosen_sigma_spacing(self.settings) == "use_karras_sigmas":
            chosen = chosen.round()
        levels = levels.astype(np.float32)
        middles = self.middles(torch.from_numpy(levels[:-1])).numpy()
        return (
            _alternating(chosen, self.noise_schedule.timesteps_at(middles, np.float32)),
            np.concatenate([levels[:1], levels[1:-1].repeat(2), levels[-1:]]),
            np.append(_alternating(levels[:-1], middles), levels[-1]),
        )

    def middles(self, sigmas: Tensor) -> Tensor:
        """Return the middle sigma of each step but the last, which is a single evaluation."""
        return sigmas[1:].log().lerp(sigmas[:-1].log(), 0.5).exp()


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    plan_class = KDPM2AncestralPlan

    def middles(self, sigmas: Tensor) -> Tensor:
        down, _ = ancestral_sigmas(sigmas[:-1], sigmas[1:])
        return sigmas[:-1].log().lerp(down.log(), 0.5).exp()


def _alternating(starts: np.ndarray, middles: np.ndarray) -> np.ndarray:
    return np.insert(starts, np.arange(1, len(starts)), middles)
