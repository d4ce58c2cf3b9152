"""Euler's method for flow-matching models (arXiv:2210.02747, arXiv:2403.03206).

Such a model predicts the velocity noise - original along the straight line
latents = (1 - sigma) * original + sigma * noise, so sigma runs from 1 (pure noise) to 0, and a step of
Euler's method is a step along the velocity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.schedulers.noise_schedule import Settings, respaced_sigmas
from retouch.schedulers.plan import Plan, Step
from retouch.schedulers.scheduler import Scheduler


class FlowMatchEulerPlan(Plan):
    """A plan over sigmas between 1 and 0.

    `sigmas` holds one for each timestep and the final 0. They stay on the CPU as 0-d float32 tensors: those
    mix with latents on any device and do not change their dtype.
    """

    def __init__(self, settings: Settings, timesteps: np.ndarray, sigmas: np.ndarray, **run: Any) -> None:
        self.sigmas = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
        super().__init__(settings, timesteps.astype(np.float32), **run)

    def level(self, step: Step) -> float:
        return float(self.sigmas[step.index])

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        sigma, sigma_next = self.sigmas[step.index], self.sigmas[step.index + 1]
        latents = latents.float()  # half precision would lose small steps
        if not self.settings["stochastic_sampling"]:
            return (latents + (sigma_next - sigma) * prediction).to(prediction.dtype), None
        original = latents - sigma * prediction
        moved = (1 - sigma_next) * original + sigma_next * self.draw_noise(latents)
        return moved.to(prediction.dtype), original

    def noised_at(self, original: Tensor, noise: Tensor, indices: Sequence[int]) -> Tensor:
        """Return `original` at the levels of these positions, one for all rows or one per row."""
        sigmas = self.sigmas[list(indices)].to(original.device, original.dtype)
        sigmas = sigmas.reshape(-1, *[1] * (original.ndim - 1))
        return sigmas * noise + (1 - sigmas) * original

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        return self.noised_at(original, noise, [step.index])


class FlowMatchEulerDiscreteScheduler(Scheduler):
    """Euler's method over sigmas that are shifted towards the noisy end.

    Large images need a larger shift. With `use_dynamic_shifting`, a run gives it as `mu`, which depends on
    the number of image tokens (see `mu_for`); otherwise the setting `shift` holds for all sizes.
    """

    accepts = ("timesteps", "sigmas")
    fewest: ClassVar[dict[str, int]] = {"timesteps": 1, "sigmas": 1}  # the final sigma 0 is not in the list
    plan_class = FlowMatchEulerPlan
    defaults: ClassVar[Settings] = {
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }
    choices: ClassVar[Settings] = {
        "invert_sigmas": (False,),
        "time_shift_type": ("exponential", "linear"),
    }

    def mu_for(self, tokens: int) -> float:
        """Return the `mu` that the settings give to a number of image tokens: linear between two sizes."""
        low, high = self.settings["base_image_seq_len"], self.settings["max_image_seq_len"]
        slope = (self.settings["max_shift"] - self.settings["base_shift"]) / (high - low)
        return float(self.settings["base_shift"] + slope * (tokens - low))

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int | float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        **run: Any,
    ) -> Plan:
        """Start a run: give the number of steps, or the timesteps, or the sigmas (without the final 0).

        Sigmas given or found from timesteps are then shifted. `mu` counts under `use_dynamic_shifting` alone;
        a model's pipeline may give it for every checkpoint.
        """
        self._check_request(num_inference_steps, timesteps, sigmas)
        if mu is None and self.settings["use_dynamic_shifting"]:
            raise InputError(
                "mu is missing. This scheduler has use_dynamic_shifting = True, so each run needs a mu; give "
                "mu=scheduler.mu_for(number of image tokens), or make the scheduler with "
                "from_config(config, use_dynamic_shifting=False).",
                parameter="mu",
            )
        chosen = None  # otherwise the timesteps follow the sigmas
        if timesteps is not None:
            chosen = self._checked("timesteps", timesteps, len(self))
            unshifted = chosen / len(self)
        elif sigmas is not None:
            unshifted = self._checked("sigmas", sigmas, 1)
        else:
            assert num_inference_steps is not None
            highest, lowest = self._training_sigmas()[[0, -1]].tolist()
            unshifted = np.linspace(highest * len(self), lowest * len(self), num_inference_steps) / len(self)
        levels = self._stretched(self._shifted(unshifted, mu))
        levels = respaced_sigmas(self.settings, levels, len(levels)).astype(np.float32)
        chosen = levels * len(self) if chosen is None else chosen
        return FlowMatchEulerPlan(self.settings, chosen, levels, **run)

    def _checked(self, name: str, given: Sequence[int | float], highest: int) -> np.ndarray:
        values = np.asarray(given, dtype=np.float32)
        if values.min() <= 0 or values.max() > highest:
            raise InputError(
                f"{name} is {given}. Each must be above 0 and at most {highest}, where the latents are pure "
                f"noise; the run ends at 0 by itself.",
                parameter=name,
            )
        self._check_falling(name, values)
        return values

    def _shifted(self, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
        if not self.settings["use_dynamic_shifting"]:
            shift = self.settings["shift"]
            return shift * sigmas / (1 + (shift - 1) * sigmas)
        assert mu is not None
        weight = math.exp(mu) if self.settings["time_shift_type"] == "exponential" else mu
        return weight / (weight + (1 / sigmas - 1))

    def _stretched(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the sigmas stretched so that the last is `shift_terminal`, where the settings give one."""
        signal = 1 - sigmas
        if not self.settings["shift_terminal"] or signal[-1] == 0:  # a single step goes from 1 to 0
            return sigmas
        return 1 - signal / (signal[-1] / (1 - self.settings["shift_terminal"]))

    def _training_sigmas(self) -> np.ndarray:
        # The reference shifts them here and once more for a run, so that a run's last sigma is shifted twice.
        sigmas = np.linspace(1, len(self), len(self), dtype=np.float32)[::-1] / np.float32(len(self))
        return sigmas if self.settings["use_dynamic_shifting"] else self._shifted(sigmas, None)

    def _training_plan(self) -> Plan:
        sigmas = self._training_sigmas()
        return FlowMatchEulerPlan(self.settings, sigmas * len(self), sigmas)

    @property
    def sigmas(self) -> Tensor:
        return self._current.sigmas  # type: ignore[attr-defined]

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Noise to the level of `timestep`; after `set_begin_index`, to that of the run's next step."""
        indices = self._indices_to_noise_to(timestep)
        return self._current.noised_at(sample, noise, indices)  # type: ignore[attr-defined]
