"""DPM-Solver in its single-step form: groups of evaluations, each group one step of a Runge-Kutta method.

In a group of three, for example, the orders are 1, 2 and 3, and each evaluation starts at the latents from
the start of the group.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from retouch.schedulers.dpm_multistep import DPMSolverPlan, DPMSolverScheduler
from retouch.schedulers.noise_schedule import Settings
from retouch.schedulers.plan import Step


class DPMSolverSinglestepPlan(DPMSolverPlan):
    def forget(self) -> None:
        super().forget()
        self.start_of_group: Tensor | None = None

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        output, original = self.learned_output(prediction, step, latents)
        self.remember(step, output)
        noise = self.draw_noise(output) if self.is_stochastic else None
        order = self.order_of(step)
        if order == 1 or self.start_of_group is None:
            self.start_of_group = latents
        start, end = step.index - order + 1, step.index + 1
        moved = self.integrate(self.start_of_group, start, end, list(range(start + 1, end)), noise)
        return moved, original

    def order_of(self, step: Step) -> int:
        settings, highest = self.settings, self.settings["solver_order"]
        order = step.index % highest + 1
        is_lowered = settings["lower_order_final"] and order == highest
        if step.is_last and (is_lowered or settings["final_sigmas_type"] == "zero"):
            return 1
        return min(order, len(self.outputs))

    def parabola(self, quotients: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if self.settings["solver_type"] == "midpoint":
            return quotients[-1][1], torch.zeros(())
        slope, half_curvature = super().parabola(quotients)
        return slope, 2 * half_curvature


class DPMSolverSinglestepScheduler(DPMSolverScheduler):
    plan_class = DPMSolverSinglestepPlan
    defaults: ClassVar[Settings] = {**DPMSolverScheduler.defaults, "lower_order_final": False}
    choices: ClassVar[Settings] = {
        **DPMSolverScheduler.choices,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
    }
