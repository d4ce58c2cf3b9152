"""One run of one scheduler: its steps, its noise levels and the memory that a multistep method needs.

A scheduler makes a new plan for each run and does not keep it, so two runs cannot disturb each other. The
step formulas are in the files of the schedulers; this file has what they share.
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
    """One model evaluation. Heun's method makes two for each requested step."""

    index: int  # position in the whole schedule, also where `strength` leaves out its beginning
    timestep: Tensor  # 0-d, an input of the model
    is_last: bool
    next: Step | None


class Plan(ABC):
    """The steps of one run, and the formula by which each of them changes the latents."""

    order = 1  # model evaluations for each requested step
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
        # The same as Python numbers, because reading a tensor on an accelerator waits for its queue.
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
        """Clear the memory of earlier steps. Multistep methods create theirs here."""

    @property
    def timesteps(self) -> Tensor:
        return self.all_timesteps[self.start : self.stop]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps[self.start : self.stop])

    def __len__(self) -> int:
        return self.stop - self.start

    def after(self, steps_done: int) -> Self:
        """Return the same schedule without its first `steps_done` evaluations, with an empty memory."""
        rest = copy.copy(self)
        rest.start = self.start + steps_done
        rest.forget()
        return rest

    def until(self, steps_taken: int) -> Self:
        """Return the same schedule, ended after `steps_taken` evaluations: the latents stay noisy."""
        rest = copy.copy(self)
        rest.stop = min(self.start + steps_taken, self.stop)
        rest.forget()
        return rest

    def following(self, step: Step) -> Step | None:
        """Return the next step of this run; None after its last, even where the schedule goes on."""
        return step.next if step.index + 1 < self.stop else None

    def level(self, step: Step) -> float:
        """Return the noise level at the start of `step`: 1 is pure noise."""
        return self.timestep_values[step.index] / self.settings["num_train_timesteps"]

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents, scaled as the model expects them."""
        return latents

    def advance(self, prediction: Tensor, step: Step, latents: Tensor) -> Tensor:
        """Return the latents at the start of the next step."""
        return self.advance_with_original(prediction, step, latents)[0]

    def advance_with_original(
        self, prediction: Tensor, step: Step, latents: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next latents, and the predicted clean latents if the method computes them."""
        if step.index == self.start:
            self.forget()
        return self.move(prediction, step, latents)

    @abstractmethod
    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply the step formula; return the next latents and the predicted clean latents (or None)."""

    @abstractmethod
    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        """Return `original` at the noise level at the start of `step`."""

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
                f"The schedule has timesteps from {timesteps.min()} to {timesteps.max()}. This model was "
                f"trained on 0 to {last}; use fewer steps or a smaller steps_offset.",
                parameter="timesteps",
            )
        self.noise_schedule = noise_schedule
        super().__init__(settings, timesteps, **run)

    def alpha(self, timestep: int) -> Tensor:
        """Return the product of alphas up to this timestep. A negative timestep means clean latents."""
        if timestep >= 0:
            return self.noise_schedule.alphas_cumprod[timestep]
        # Clean latents have alpha 1, or the alpha of timestep 0 for models that never saw 1 in training.
        to_one = self.settings.get("set_alpha_to_one", True)
        return torch.tensor(1.0) if to_one else self.noise_schedule.alphas_cumprod[0]

    def timestep_after(self, step: Step, final: int = -1) -> int:
        """Return the timestep of the latents after `step`; after the last step it is `final`."""
        return final if step.next is None else int(self.timestep_values[step.next.index])

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        timestep = torch.tensor([self.timestep_values[step.index]])
        return self.noise_schedule.mix(original, noise, timestep)


class SigmaPlan(Plan):
    """A plan over sigmas, with latents = original + sigma * noise.

    `sigmas` has one value for each timestep, and the final one. They stay on the CPU as 0-d float32 tensors,
    which mix with latents on any device and do not change their dtype.
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
        """Return `original` at the levels of these positions, one for all rows or one per row."""
        sigmas = self.sigmas[list(indices)].to(original.device, original.dtype)
        return original + noise * sigmas.reshape(-1, *[1] * (original.ndim - 1))

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        return self.noised_at(original, noise, [step.index])


class UnitVarianceSigmaPlan(SigmaPlan):
    """A plan over sigmas whose latents are scaled to variance 1, as in the DPM-Solver family."""

    initial_sigma = 1.0

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        return latents

    @staticmethod
    def signal_and_noise(sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two weights in latents = signal * original + noise * epsilon."""
        signal = 1 / (sigma**2 + 1) ** 0.5
        return signal, sigma * signal

    def noised_at(self, original: Tensor, noise: Tensor, indices: Sequence[int]) -> Tensor:
        sigmas = self.sigmas[list(indices)].to(original.device, original.dtype)
        signal, sigma = self.signal_and_noise(sigmas.reshape(-1, *[1] * (original.ndim - 1)))
        return signal * original + sigma * noise
