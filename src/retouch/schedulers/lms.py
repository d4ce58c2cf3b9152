"""Linear multistep (Adams-Bashforth) over sigma: a polynomial through the last four slopes is integrated."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from retouch.schedulers.diffusion import SigmaScheduler
from retouch.schedulers.noise_schedule import Settings, predicted_original_at_sigma
from retouch.schedulers.plan import SigmaPlan, Step

MAX_SLOPES = 4


class LMSPlan(SigmaPlan):
    def forget(self) -> None:
        self.slopes: list[Tensor] = []  # the latest first

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma = self.sigmas[step.index]
        original = predicted_original_at_sigma(self.settings["prediction_type"], prediction, latents, sigma)
        self.slopes = [(latents - original) / sigma, *self.slopes[: MAX_SLOPES - 1]]
        # A run that `strength` starts late has fewer slopes than the polynomial needs. The reference drops
        # the missing ones without lowering the degree, so its first three steps are too long. We do the same
        # to get the same pixels.
        degree = min(step.index + 1, MAX_SLOPES)
        weights = self.weights(step.index, degree)
        change = sum(weight * slope for weight, slope in zip(weights, self.slopes, strict=False))
        return latents + change, original

    def weights(self, index: int, degree: int) -> list[float]:
        """Return the weight of each of the latest slopes: the integral of its Lagrange polynomial."""
        nodes = self.sigmas[index - degree + 1 : index + 1].flip(0).tolist()
        start, end = nodes[0], float(self.sigmas[index + 1])
        middle, half = (start + end) / 2, (end - start) / 2
        weights = []
        for node in nodes:
            others = [other for other in nodes if other != node]
            total = 0.0
            for point in (middle - half / 3**0.5, middle + half / 3**0.5):  # Gauss: exact up to cubics
                value = half
                for other in others:
                    value *= (point - other) / (node - other)
                total += value
            weights.append(total)
        return weights


class LMSDiscreteScheduler(SigmaScheduler):
    plan_class = LMSPlan
    defaults: ClassVar[Settings] = {
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "timestep_spacing": "linspace",
    }
