"""DDIM (arXiv:2010.02502): a deterministic step, to which `eta` adds noise."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import Settings, limited_original, predicted_noise, predicted_original
from retouch.schedulers.plan import AlphaPlan, Step


class DDIMPlan(AlphaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        kind, train_steps = self.settings["prediction_type"], self.settings["num_train_timesteps"]
        timestep = int(self.timestep_values[step.index])
        # Checkpoints are used with this fixed stride. It differs from the plan's next timestep where the
        # spacing does not divide evenly.
        alpha, alpha_after = self.alpha(timestep), self.alpha(timestep - train_steps // len(self.steps))
        signal, noise = alpha**0.5, (1 - alpha) ** 0.5
        original = predicted_original(kind, prediction, latents, signal, noise)
        epsilon = predicted_noise(kind, prediction, latents, signal, noise)
        original = limited_original(original, self.settings)

        variance = (1 - alpha_after) / (1 - alpha) * (1 - alpha / alpha_after)
        deviation = self.eta * variance**0.5
        moved = alpha_after**0.5 * original + (1 - alpha_after - deviation**2) ** 0.5 * epsilon
        if self.eta > 0:
            moved = moved + deviation * self.draw_noise(prediction)
        return moved, original


class DDIMScheduler(DiffusionScheduler):
    plan_class = DDIMPlan
    defaults: ClassVar[Settings] = {
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }
