"""Classifier-free guidance: one model evaluation over two batches, and their combination."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from retouch.sampling.conditioning import Conditioning, stack
from retouch.schedulers.plan import Plan, Step


@dataclass
class Guidance:
    """Pushes a prediction away from the negative one: `scale` times the distance between the two.

    With `active` False the model sees the positive inputs alone. `rescale` pulls the result back to the
    spread of the positive prediction ("Common Diffusion Noise Schedules and Sample Steps are Flawed", section
    3.4), which keeps strong guidance from over-exposing. Outside an `interval` of noise levels there is no
    guidance, and the negative half is not computed ("Applying Guidance in a Limited Interval Improves Sample
    and Distribution Quality in Diffusion Models").
    """

    scale: float
    rescale: float = 0.0
    active: bool = True
    interval: tuple[float, float] | None = field(default=None, kw_only=True)  # 0 is clean, 1 is pure noise

    def at(self, plan: Plan, step: Step) -> Self:
        """Return the guidance in `step`: off where the noise level lies outside the interval."""
        if self.interval is None or self.interval[0] <= plan.level(step) <= self.interval[1]:
            return self
        return replace(self, active=False)

    def pair(self, conditioning: Conditioning) -> dict[str, Any]:
        """Return the model's inputs: negative rows first, then positive."""
        if not self.active or conditioning.negative is None:
            return dict(conditioning.positive)
        return stack(conditioning.negative, conditioning.positive)

    def repeat(self, rows: Tensor) -> Tensor:
        """Return the same rows for both halves."""
        return torch.cat([rows, rows]) if self.active else rows

    def combine(self, prediction: Tensor) -> Tensor:
        """Return one prediction out of the two halves."""
        if not self.active:
            return prediction
        negative, positive = prediction.chunk(2)
        guided = negative + self.scale * (positive - negative)
        if self.rescale > 0:
            axes = tuple(range(1, guided.ndim))
            matched = guided * (positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
            guided = self.rescale * matched + (1 - self.rescale) * guided
        return guided
