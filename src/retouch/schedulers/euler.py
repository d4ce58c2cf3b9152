"""Euler's method on the probability-flow equation (arXiv:2206.00364, algorithm 2), and its ancestral form.

The ancestral form goes further down than the next level and returns to it with fresh noise.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from retouch.schedulers.diffusion import SigmaScheduler
from retouch.schedulers.noise_schedule import Settings, ancestral_sigmas, predicted_original_at_sigma
from retouch.schedulers.plan import SigmaPlan, Step


class EulerPlan(SigmaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma, sigma_next = self.sigmas[step.index], self.sigmas[step.index + 1]
        latents = latents.float()  # half precision would lose the picture beside sigmas of hundreds
        original = predicted_original_at_sigma(self.settings["prediction_type"], prediction, latents, sigma)
        slope = (latents - original) / sigma
        return (latents + slope * (sigma_next - sigma)).to(prediction.dtype), original


class EulerAncestralPlan(SigmaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma, sigma_next = self.sigmas[step.index], self.sigmas[step.index + 1]
        latents = latents.float()
        original = predicted_original_at_sigma(self.settings["prediction_type"], prediction, latents, sigma)
        down, up = ancestral_sigmas(sigma, sigma_next)
        slope = (latents - original) / sigma
        moved = latents + slope * (down - sigma)
        # The noise is drawn on the last step too, where its weight is 0, because the reference does: later
        # draws from the same generator must be the same.
        return (moved + self.draw_noise(prediction) * up).to(prediction.dtype), original


class EulerDiscreteScheduler(SigmaScheduler):
    plan_class = EulerPlan
    accepts = ("timesteps", "sigmas")
    defaults: ClassVar[Settings] = {
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    choices: ClassVar[Settings] = {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero", "sigma_min"),
    }


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    plan_class = EulerAncestralPlan
    defaults: ClassVar[Settings] = {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False}
