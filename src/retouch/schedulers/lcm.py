"""Latent consistency models (arXiv:2310.04378): each step predicts clean latents and adds fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from retouch.errors import InputError
from retouch.schedulers.diffusion import DiffusionScheduler
from retouch.schedulers.noise_schedule import Settings, limited_original, predicted_original
from retouch.schedulers.plan import AlphaPlan, Plan, Step

_SIGMA_DATA = 0.5


class LCMPlan(AlphaPlan):
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        alpha = self.alpha(int(self.timestep_values[step.index]))
        original = predicted_original(
            self.settings["prediction_type"], prediction, latents, alpha.sqrt(), (1 - alpha).sqrt()
        )
        original = limited_original(original, self.settings)
        # The weights of appendix D: at timestep 0 the latents are kept as they are.
        scaled = step.timestep * self.settings["timestep_scaling"]
        keep = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        change = scaled / (scaled**2 + _SIGMA_DATA**2) ** 0.5
        denoised = change * original + keep * latents
        if step.is_last:
            return denoised, denoised
        alpha_after = self.alpha(self.timestep_after(step))
        noise = self.draw_noise(denoised)
        return alpha_after.sqrt() * denoised + (1 - alpha_after).sqrt() * noise, denoised


class DistilledScheduler(DiffusionScheduler):
    """Base of the schedulers for distilled models. A run takes some of the distillation's timesteps."""

    accepts = ("timesteps",)
    defaults: ClassVar[Settings] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    }

    def levels(
        self, steps: int | None, timesteps: Sequence[int | float] | None, sigmas: Sequence[float] | None
    ) -> tuple[np.ndarray, ...]:
        if steps is None:
            return super().levels(steps, timesteps, sigmas)
        distilled = self.settings["original_inference_steps"]
        if not steps <= distilled <= len(self):
            raise InputError(
                f"num_inference_steps is {steps} and original_inference_steps is {distilled}. "
                f"num_inference_steps may be at most original_inference_steps, and that at most {len(self)}. "
                f"Use fewer steps, or make the scheduler with from_config(config, "
                f"original_inference_steps=...).",
                parameter="num_inference_steps",
            )
        falling = (np.arange(distilled, 0, -1) * (len(self) // distilled)) - 1
        return (falling[np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)],)


class LCMScheduler(DistilledScheduler):
    plan_class = LCMPlan

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        original_inference_steps: int | None = None,
        **run: Any,
    ) -> Plan:
        """Start a run, as with all schedulers; `original_inference_steps` replaces the setting for it."""
        if original_inference_steps is None:
            return super().plan(num_inference_steps, **run)
        other = type(self).from_config(self.config, original_inference_steps=original_inference_steps)
        return other.plan(num_inference_steps, **run)
