"""One run of one scheduler: its steps, its noise levels and the memory that a multistep method needs.

A scheduler hands out a new plan for each run and keeps nothing of it, so two runs cannot disturb each
other. The step formulas are in the scheduler's own file; what they share is here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from typing_extensions import Self

from retouch.devices import randn
from retouch.errors import InputError
from retouch.schedulers.noise_schedule import NoiseSchedule, Settings


@dataclass(frozen=True)
class Step:
    """One model evaluation. Heun, for one, needs two for each step that was asked for."""

    index: int  # position in the whole schedule, whatever strength left out before it
    timestep: Tensor  # 0-d, what the model is told
    is_last: bool
    next: Step | None


class Plan(ABC):
    """The steps of one run, and how each of them changes the latents."""

    order = 1  # model evaluations for each step asked for
    initial_sigma: float | Tensor = 1.0  # first latents = noise * initial_sigma

    def __init__(
        self,
        settings: Settings,
        timesteps: np.ndarray,
        *,
        device: torch.device | str | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        eta: float = 0.0,
    ) -> None:
        self.settings = settings
        self.generator = generator
        self.eta = eta
        self.start, self.stop = 0, len(timesteps)
        # The numbers once more as Python values: asking a tensor on an accelerator would wait for it.
        self.timestep_values: list[int | float] = timesteps.tolist()
        self.all_timesteps = torch.from_numpy(timesteps).to(device)
        self.steps = self._make_steps()
        self.forget()

    def _make_steps(self) -> list[Step]:
        steps: list[Step] = []
        following: Step | None = None
        for index in reversed(range(len(self.timestep_values))):
            following = Step(index, self.all_timesteps[index], following is None, following)
            steps.append(following)
        return steps[::-1]

    def forget(self) -> None:
        """Empty the memory of earlier steps. Methods with one create it here."""

    @property
    def timesteps(self) -> Tensor:
        return self.all_timesteps[self.start : self.stop]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps[self.start : self.stop])

    def __len__(self) -> int:
        return self.stop - self.start

    def after(self, steps_done: int) -> Self:
        """The same schedule without its first `steps_done` evaluations, with an empty memory."""
        rest = copy.copy(self)
        rest.start = self.start + steps_done
        rest.forget()
        return rest

    def until(self, steps_taken: int) -> Self:
        """The same schedule, left after `steps_taken` evaluations: the latents stay noisy."""
        rest = copy.copy(self)
        rest.stop = min(self.start + steps_taken, self.stop)
        rest.forget()
        return rest

    def following(self, step: Step) -> Step | None:
        """The step that this run takes next; None after its last, also where the schedule goes on."""
        return step.next if step.index + 1 < self.stop else None

    def level(self, step: Step) -> float:
        """How noisy the latents are where `step` starts: 1 is pure noise."""
        return self.timestep_values[step.index] / self.settings["num_train_timesteps"]

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        """The latents as the model wants them."""
        return latents

    def advance(self, prediction: Tensor, step: Step, latents: Tensor) -> Tensor:
        """The latents where the next step starts."""
        return self.advance_with_original(prediction, step, latents)[0]

    def advance_with_original(
        self, prediction: Tensor, step: Step, latents: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As `advance`, with the clean latents predicted on the way where the method has them."""
        if step.index == self.start:
            self.forget()
        return self.move(prediction, step, latents)

    @abstractmethod
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step formula: the next latents and the predicted clean latents (or None)."""

    @abstractmethod
    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        """`original` at the noise level where `step` starts."""

    def draw_noise(self, like: Tensor) -> Tensor:
        return randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


class AlphaPlan(Plan):
    """A plan over integer timesteps, with latents = sqrt(alpha) * original + sqrt(1 - alpha) * noise."""

    def __init__(
        self, settings: Settings, noise_schedule: NoiseSchedule, timesteps: np.ndarray, **run: Any
    ) -> None:
        timesteps = timesteps.astype(np.int64)
        last = len(noise_schedule.alphas_cumprod) - 1
        if timesteps.max() > last or timesteps.min() < 0:
            raise InputError(
                f"The schedule holds timesteps from {timesteps.min()} to {timesteps.max()}. This model was "
                f"trained on 0 to {last}; use fewer steps or a smaller steps_offset."
            )
        self.noise_schedule = noise_schedule
        super().__init__(settings, timesteps, **run)

    def alpha(self, timestep: int) -> Tensor:
        """The product of alphas up to this timestep; a negative one means the clean end."""
        if timestep >= 0:
            return self.noise_schedule.alphas_cumprod[timestep]
        # The clean end is alpha 1, or the level of timestep 0 where training never saw alpha 1.
        to_one = self.settings.get("set_alpha_to_one", True)
        return torch.tensor(1.0) if to_one else self.noise_schedule.alphas_cumprod[0]

    def timestep_after(self, step: Step, at_the_end: int = -1) -> int:
        """The timestep where the latents are after `step`."""
        return at_the_end if step.next is None else int(self.timestep_values[step.next.index])

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        timestep = torch.tensor([self.timestep_values[step.index]])
        return self.noise_schedule.mix(original, noise, timestep)


class SigmaPlan(Plan):
    """A plan over sigmas, with latents = original + sigma * noise.

    `sigmas` holds one for each timestep and the one that the last step ends at. They stay on the CPU as
    0-d float32 tensors: those mix with latents on any device and do not change their dtype.
    """

    def __init__(
        self,
        settings: Settings,
        noise_schedule: NoiseSchedule,
        timesteps: np.ndarray,
        sigmas: np.ndarray,
        **run: Any,
    ) -> None:
        self.noise_schedule = noise_schedule
        self.sigmas = torch.from_numpy(sigmas.astype(np.float32))
        super().__init__(settings, timesteps, **run)

    @property
    def initial_sigma(self) -> float | Tensor:  # type: ignore[override]
        highest = self.sigmas.max()
        # Leading spacing does not start at pure noise, so the clean part's variance of 1 counts too.
        return (highest**2 + 1) ** 0.5 if self.settings["timestep_spacing"] == "leading" else highest

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        return latents / (self.sigmas[step.index] ** 2 + 1) ** 0.5

    def noised_at(self, original: Tensor, noise: Tensor, indices: Sequence[int]) -> Tensor:
        """`original` at the levels of these positions, one for all rows or one per row."""
        sigmas = self.sigmas[list(indices)].to(original.device, original.dtype)
        return original + noise * sigmas.reshape(-1, *[1] * (original.ndim - 1))

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        return self.noised_at(original, noise, [step.index])


class UnitVarianceSigmaPlan(SigmaPlan):
    """A plan over sigmas whose latents are scaled back to variance 1, as the DPM-Solver family keeps them."""

    initial_sigma = 1.0

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        return latents

    @staticmethod
    def signal_and_noise(sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The two weights in latents = signal * original + noise * epsilon."""
        signal = 1 / (sigma**2 + 1) ** 0.5
        return signal, sigma * signal

    def noised_at(self, original: Tensor, noise: Tensor, indices: Sequence[int]) -> Tensor:
        sigmas = self.sigmas[list(indices)].to(original.device, original.dtype)
        signal, sigma = self.signal_and_noise(sigmas.reshape(-1, *[1] * (original.ndim - 1)))
        return signal * original + sigma * noise
