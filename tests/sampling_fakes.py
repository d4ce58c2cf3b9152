"""A small plan and a small model, for tests of the algorithm without real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from retouch.schedulers.plan import Step


class FakePlan:
    """A plan with levels from 1 to 0: a step adds the prediction, and noising mixes linearly."""

    order = 1
    initial_sigma = 10.0

    def __init__(self, levels: Sequence[float] = (1.0, 0.75, 0.5, 0.25), order: int = 1) -> None:
        self.levels, self.order = list(levels), order
        following: Step | None = None
        self.steps: list[Step] = []
        for index in reversed(range(len(self.levels))):
            timestep = torch.tensor(int(1000 * self.levels[index]))
            following = Step(index, timestep, following is None, following)
            self.steps.insert(0, following)
        self.advanced: list[int] = []

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, steps_done: int) -> FakePlan:
        rest = FakePlan(self.levels, self.order)
        rest.steps = self.steps[steps_done:]
        return rest

    def following(self, step: Step) -> Step | None:
        return step.next

    def level(self, step: Step) -> float:
        return self.levels[step.index]

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        return latents / 2

    def advance(self, prediction: Tensor, step: Step, latents: Tensor) -> Tensor:
        self.advanced.append(step.index)
        return latents + prediction

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        level = self.level(step)
        return (1 - level) * original + level * noise


class FakeModel:
    """A model that records its inputs and returns the first channels plus the mean of its inputs."""

    def __init__(self, channels: int = 4) -> None:
        self.channels = channels
        self.calls: list[dict[str, Any]] = []

    def __call__(self, x: Tensor, timestep: Tensor, *, text: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        self.calls.append({"x": x, "timestep": timestep, "text": text})
        return (x[:, : self.channels] + text.mean(dim=1)[:, None, None, None],)
