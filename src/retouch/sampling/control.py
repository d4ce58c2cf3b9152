"""ControlNet as a function: the residuals that control pictures add to the model's own tensors at each step.

The predictor calls it and passes the residuals to the model; neither it nor the loop knows what a ControlNet
is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retouch.sampling.conditioning import Inputs, each
from retouch.sampling.guidance import Guidance
from retouch.schedulers.plan import Plan, Step


@dataclass
class Control:
    """One or several ControlNets of a run; the lists hold one entry for each net.

    `model` takes lists of pictures and scales, and sums the residuals of its nets. A net acts between the two
    fractions of the steps in `windows`. With `guess_mode` the nets see only the positive half of the
    guidance.
    """

    model: Callable[..., Any]
    plan: Plan
    pictures: Sequence[Tensor]  # (rows, channels, 8 height, 8 width), one half of the guidance
    scales: Sequence[float]
    windows: Sequence[tuple[float, float]]
    guess_mode: bool = False

    def __call__(self, x: Tensor, step: Step, inputs: Inputs, guidance: Guidance) -> dict[str, Any]:
        """Return residuals for `x` as keyword inputs of the model; none while every net is off."""
        scales = [
            scale if self._is_on(step, *window) else 0.0
            for scale, window in zip(self.scales, self.windows, strict=True)
        ]
        if not any(scales):
            return {}
        # Only the model itself reads a distilled model's guidance scale.
        shared = {key: value for key, value in inputs.items() if key != "timestep_cond"}
        guessing = self.guess_mode and guidance.active
        if guessing:
            x, shared = x.chunk(2)[1], each(shared, lambda rows: rows.chunk(2)[1])
        pictures = self.shown(guidance)
        dtype = pictures[0].dtype  # the nets', which need not be the model's
        down, mid = self.model(
            x.to(dtype),
            step.timestep,
            controlnet_cond=pictures,
            conditioning_scale=scales,
            guess_mode=self.guess_mode,
            return_dict=False,
            **each(shared, lambda rows: rows.to(dtype)),
        )
        *down, mid = (part.to(x.dtype) for part in [*down, mid])
        if guessing:
            *down, mid = (torch.cat([torch.zeros_like(part), part]) for part in [*down, mid])
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    def shown(self, guidance: Guidance) -> list[Tensor]:
        """Return the pictures as the nets see them."""
        if self.guess_mode:
            return list(self.pictures)
        return [guidance.repeat(picture) for picture in self.pictures]

    def show(self, pictures: Sequence[Tensor]) -> None:
        """Replace the pictures from now on, given for one half of the guidance or for both."""
        self.pictures = [new[-len(old) :].to(old) for new, old in zip(pictures, self.pictures, strict=True)]

    def _is_on(self, step: Step, start: float, end: float) -> bool:
        """Return whether the whole step lies in the window, in fractions of the schedule after `strength`."""
        first, count = self.plan.start, len(self.plan.steps) - self.plan.start
        return not ((step.index - first) / count < start or (step.index + 1 - first) / count > end)
