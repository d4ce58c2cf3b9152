"""DDPM (arXiv:2006.11239): each step adds fresh noise, whose variance is fixed or predicted by the model."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import (
    BETA_SCHEDULES,
    Settings,
    limited_original,
    predicted_original,
)
from retouch.schedulers.plan import AlphaPlan, Step


class DDPMPlan(AlphaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        predicted_variance = None
        learned = self.settings["variance_type"] in ("learned", "learned_range")
        if learned and prediction.shape[1] == 2 * latents.shape[1]:
            prediction, predicted_variance = prediction.chunk(2, dim=1)
        timestep = int(self.timestep_values[step.index])
        after = self.timestep_after(step)
        alpha, alpha_after = self.alpha(timestep), self.alpha(after)
        step_alpha, step_beta = self.alpha_and_beta(timestep, after)
        original = predicted_original(
            self.settings["prediction_type"], prediction, latents, alpha**0.5, (1 - alpha) ** 0.5
        )
        original = limited_original(original, self.settings)
        # Equation 7: a weighted mean of the predicted clean latents and the latents.
        to_original = alpha_after**0.5 * step_beta / (1 - alpha)
        to_latents = step_alpha**0.5 * (1 - alpha_after) / (1 - alpha)
        moved = to_original * original + to_latents * latents
        if timestep > 0:  # the last step adds noise too, unless it starts at timestep 0
            noise = self.draw_noise(prediction)
            smallest = ((1 - alpha_after) / (1 - alpha) * step_beta).clamp(min=1e-20)
            moved = moved + self._deviation(smallest, step_beta, predicted_variance) * noise
        return moved, original

    def alpha_and_beta(self, timestep: int, after: int) -> tuple[Tensor, Tensor]:
        """Return alpha and beta of the step between two timesteps."""
        alpha = self.alpha(timestep) / self.alpha(after)
        return alpha, 1 - alpha

    def _deviation(self, smallest: Tensor, largest: Tensor, predicted: Tensor | None) -> Tensor:
        kind = self.settings["variance_type"]
        if predicted is None:
            return (largest if kind.startswith("fixed_large") else smallest) ** 0.5
        if kind == "learned":
            return predicted**0.5
        share = (predicted + 1) / 2  # the model predicts a position between the two, from -1 to 1
        return torch.exp(0.5 * (share * torch.log(largest) + (1 - share) * torch.log(smallest)))


class DDPMScheduler(DiffusionScheduler):
    plan_class = DDPMPlan
    accepts = ("timesteps",)
    defaults: ClassVar[Settings] = {
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
    choices: ClassVar[Settings] = {
        "beta_schedule": (*BETA_SCHEDULES, "laplace", "sigmoid"),
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        ),
    }
