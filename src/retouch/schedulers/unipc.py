"""UniPC (arXiv:2302.04867): each output of the model first corrects the step that led to it, then predicts
the next one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from retouch.errors import ConfigError
from retouch.schedulers.exponential import FLOW, FLOW_CHOICES, ExponentialPlan, ExponentialScheduler
from retouch.schedulers.noise_schedule import Settings, chosen_sigma_spacing
from retouch.schedulers.plan import Step


class UniPCPlan(ExponentialPlan):
    @property
    def predicts_original(self) -> bool:
        return bool(self.settings["predict_x0"])

    def forget(self) -> None:
        super().forget()
        self.last: tuple[Tensor, int] | None = None  # the latents before this step, and that step's order

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        here = step.index
        output, original = self.output(prediction, step, latents)
        self.remember(step, output)
        if self.last is not None and here - 1 not in self.settings["disable_corrector"]:
            before, order = self.last
            latents = self.integrate(before, here - 1, [*self.earlier(here - 1, order), here])
        order = self.order_of(step)
        self.last = latents, order
        return self.integrate(latents, here, self.earlier(here, order)), original

    def order_of(self, step: Step) -> int:
        order = min(self.settings["solver_order"], len(self.outputs))
        # Down to sigma 0 the interval in lambda is infinite, too long for a polynomial of higher order.
        if self.settings["lower_order_final"] or self.sigmas[step.index + 1] == 0:
            return min(order, len(self.steps) - step.index)
        return order

    @staticmethod
    def earlier(index: int, order: int) -> list[int]:
        return [index - back for back in range(1, order)]

    def integrate(self, latents: Tensor, start: int, nodes: list[int]) -> Tensor:
        """Take one step from `start` with the outputs at `nodes`; with the output at its end, correct it."""
        kept, weight, z = self.integrator(start, start + 1)
        growth = torch.expm1(z)
        moved = kept * latents - weight * growth * self.outputs[start]
        if not nodes:
            return moved
        scale = z if self.settings["solver_type"] == "bh1" else growth
        quotients = self.quotients(start, start + 1, nodes)
        shares = self.shares(torch.stack([distance for distance, _ in quotients]), z, scale)
        change = sum(share * quotient for share, (_, quotient) in zip(shares, quotients, strict=True))
        return moved - weight * scale * change

    @staticmethod
    def shares(distances: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        """Return the weight of each difference quotient, by equation 10 of the paper."""
        if len(distances) == 1:
            return torch.tensor([0.5])  # the paper's simplification for a single one
        powers, wanted = [], []
        rest = torch.expm1(z) / z - 1
        for power in range(len(distances)):
            powers.append(distances**power)
            wanted.append(rest * math.factorial(power + 1) / scale)
            rest = rest / z - 1 / math.factorial(power + 2)
        return torch.linalg.solve(torch.stack(powers), torch.stack(wanted))


class UniPCMultistepScheduler(ExponentialScheduler):
    plan_class = UniPCPlan
    defaults: ClassVar[Settings] = {
        "solver_order": 2,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "timestep_spacing": "linspace",
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
        **FLOW,
    }
    choices: ClassVar[Settings] = {
        "solver_order": (1, 2, 3),
        "solver_type": ("bh1", "bh2"),
        "solver_p": (None,),
        "final_sigmas_type": ("zero", "sigma_min"),
        "shift_terminal": (None,),
        **FLOW_CHOICES,
    }

    def __init__(self, **settings: Any) -> None:
        # Settings of the DPM solvers and DEIS are often taken over; they become the nearest of ours.
        if settings.get("solver_type") in ("midpoint", "heun", "logrho"):
            settings["solver_type"] = "bh2"
        super().__init__(**settings)
        if not self.settings["predict_x0"] and self.settings["final_sigmas_type"] == "zero":
            raise ConfigError(
                'predict_x0 = False cannot end at final_sigmas_type = "zero": its last step would be '
                'infinitely long. Set final_sigmas_type="sigma_min", or predict_x0=True.',
                parameter="final_sigmas_type",
            )

    def final_sigma_after(self, levels: np.ndarray) -> float:
        if self.settings["final_sigmas_type"] == "sigma_min" and chosen_sigma_spacing(self.settings):
            return float(levels[-1])
        return self.final_sigma
