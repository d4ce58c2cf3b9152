"""DPM-Solver and DPM-Solver++ (arXiv:2206.00927, arXiv:2211.01095), whose higher orders use earlier steps.

`dpmsolver++` integrates predicted clean latents and `dpmsolver` predicted noise; their `sde-` forms add fresh
noise. One formula serves all four.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from retouch.errors import ConfigError
from retouch.schedulers.exponential import FLOW, FLOW_CHOICES, ExponentialPlan, ExponentialScheduler
from retouch.schedulers.noise_schedule import Settings
from retouch.schedulers.plan import Step

FEW_STEPS = 15  # with fewer steps, `lower_order_final` lowers the order of the last ones


class DPMSolverPlan(ExponentialPlan):
    @property
    def predicts_original(self) -> bool:
        return bool(self.settings["algorithm_type"].endswith("++"))

    @property
    def is_stochastic(self) -> bool:
        return bool(self.settings["algorithm_type"].startswith("sde"))

    def learned_output(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `output` without the channels in which some models predict a variance."""
        if str(self.settings["variance_type"]).startswith("learned"):
            prediction = prediction[:, : latents.shape[1]]
        return self.output(prediction, step, latents)

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        output, original = self.learned_output(prediction, step, latents)
        self.remember(step, output)
        latents = latents.float()
        noise = self.draw_noise(latents) if self.is_stochastic else None
        nodes = [step.index - back for back in range(1, self.order_of(step))]
        return self.integrate(latents, step.index, step.index + 1, nodes, noise).to(output.dtype), original

    def order_of(self, step: Step) -> int:
        """Return the number of outputs that this step's polynomial goes through."""
        settings, left = self.settings, len(self.steps) - step.index
        is_lowered = settings["lower_order_final"] and len(self.steps) < FEW_STEPS
        order = min(settings["solver_order"], len(self.outputs))
        if left == 1 and (
            is_lowered or settings["euler_at_final"] or settings["final_sigmas_type"] == "zero"
        ):
            return 1
        return min(order, 2) if left == 2 and is_lowered else order

    def integrate(
        self, latents: Tensor, start: int, end: int, nodes: list[int], noise: Tensor | None
    ) -> Tensor:
        """Move the latents between two levels by the polynomial through the outputs at `start`, `nodes`."""
        kept, weight, z = self.integrator(start, end)
        if z == 0:  # Karras spacing with final_sigmas_type "sigma_min" has that sigma twice
            return latents
        half = 0.5
        if noise is not None:
            _, noise_end = self.signal_and_noise(self.sigmas[end])
            noise = noise_end * torch.expm1(2 * z).abs() ** 0.5 * noise
            if self.predicts_original:
                kept, z = kept * torch.exp(z), 2 * z
                half = -0.5  # an error of sign in the reference's third order, which we share
            else:
                weight = 2 * weight
        # Without expm1, and scalars before tensors: at sigma 4096, where zero terminal SNR starts, another
        # rounding changes the result.
        growth = torch.exp(z) - 1
        moved = kept * latents - weight * growth * self.outputs[start]
        quotients = self.quotients(start, end, nodes)
        if len(quotients) == 1:
            [(_, slope)] = quotients
            midpoint = self.settings["solver_type"] == "midpoint"
            moved = moved - weight * (growth / 2 if midpoint else growth / z - 1) * slope
        elif len(quotients) == 2:
            slope, curvature = self.parabola(quotients)
            moved = moved - weight * (growth / z - 1) * slope
            moved = moved - weight * ((growth - z) / z**2 - half) * curvature
        return moved if noise is None else moved + noise

    def parabola(self, quotients: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the slope and half the curvature at the start of the step, as the authors' own code does."""
        (near, near_slope), (far, far_slope) = quotients
        curvature = (near_slope - far_slope) / (near - far)
        return near_slope - near * curvature, curvature


class DPMSolverScheduler(ExponentialScheduler):
    """Settings of both DPM solvers."""

    plan_class: ClassVar[type[DPMSolverPlan]] = DPMSolverPlan
    accepts = ("timesteps",)
    defaults: ClassVar[Settings] = {
        "solver_order": 2,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
        **FLOW,
    }
    choices: ClassVar[Settings] = {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "final_sigmas_type": ("zero", "sigma_min"),
        **FLOW_CHOICES,
    }

    def __init__(self, **settings: Any) -> None:
        # Settings of DEIS and UniPC are often taken over; they become the nearest of ours.
        if settings.get("algorithm_type") == "deis":
            settings["algorithm_type"] = "dpmsolver++"
        if settings.get("solver_type") in ("logrho", "bh1", "bh2"):
            settings["solver_type"] = "midpoint"
        super().__init__(**settings)
        algorithm = self.settings["algorithm_type"]
        if not algorithm.endswith("++") and self.settings["final_sigmas_type"] == "zero":
            raise ConfigError(
                f'algorithm_type = "{algorithm}" cannot end at final_sigmas_type = "zero": its last '
                f'step would be infinitely long. Set final_sigmas_type="sigma_min", or '
                f'algorithm_type="{algorithm}++".',
                parameter="final_sigmas_type",
            )
        if algorithm == "sde-dpmsolver" and self.settings["solver_order"] == 3:
            raise ConfigError(
                'algorithm_type = "sde-dpmsolver" has no solver_order 3. Set solver_order to 1 or 2, or '
                'algorithm_type to "sde-dpmsolver++".',
                parameter="solver_order",
            )

    @property
    def timestep_end(self) -> int:
        lambdas = -self.noise_schedule.log_sigmas[::-1]
        return len(self) - int(np.searchsorted(lambdas, self.settings["lambda_min_clipped"]))


class DPMSolverMultistepScheduler(DPMSolverScheduler):
    defaults: ClassVar[Settings] = {
        **DPMSolverScheduler.defaults,
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": False,
    }

    def rounded(self, timesteps: np.ndarray, spacing: str) -> np.ndarray:
        cosine = self.settings["beta_schedule"] == "squaredcos_cap_v2"
        rounds = spacing in ("use_karras_sigmas", "use_lu_lambdas") and not cosine
        return timesteps.round() if rounds else timesteps
