"""One model evaluation as a function of latents and step: scale, join channels, run, guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retouch.sampling.conditioning import each
from retouch.sampling.control import Control
from retouch.sampling.guidance import Guidance
from retouch.schedulers.plan import Plan, Step


@dataclass
class Predictor:
    """The denoiser of one run, which owns it. A callback may change its fields between two steps."""

    model: Callable[..., Any]
    plan: Plan
    guidance: Guidance
    inputs: dict[str, Any]  # keyword inputs of the model, both halves of the guidance
    channels: Tensor | None = None  # joined after the latents: a mask, a masked picture
    control: Control | None = None  # residuals from control pictures

    def __call__(self, latents: Tensor, step: Step) -> Tensor:
        guidance = self.guidance.at(self.plan, step)
        x = guidance.repeat(self.plan.scale_input(latents, step))
        inputs = self.inputs
        if not guidance.active:  # it may have been turned off during the run: the positive rows remain
            inputs = each(inputs, lambda rows: rows[-len(latents) :])
        extra = {} if self.control is None else self.control(x, step, inputs, guidance)
        if self.channels is not None:  # after scaling: a mask is not noise
            x = torch.cat([x, guidance.repeat(self.channels)], dim=1)
        prediction = self.model(x, step.timestep, **inputs, **extra, return_dict=False)[0]
        return guidance.combine(prediction)
