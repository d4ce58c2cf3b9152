"""Plans that run a scheduler object of another library, such as diffusers.

They use the methods that such objects share (`set_timesteps`, `step`, `add_noise`) and import no library.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from retouch.errors import InputError
from retouch.schedulers import names_accepting
from retouch.schedulers.plan import Plan, Step
from retouch.schedulers.scheduler import Scheduler


def as_plan(
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int | float] | None = None,
    sigmas: Sequence[float] | None = None,
    device: torch.device | str | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    eta: float = 0.0,
    mu: float | None = None,
) -> Plan:
    """Start a run of a scheduler of ours or of diffusers, without changing the scheduler.

    `mu` is for flow matching with dynamic shifting; other schedulers do not take it.
    """
    run: dict[str, Any] = {"device": device, "generator": generator, "eta": eta}
    given = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas, "mu": mu}
    given = {name: value for name, value in given.items() if value is not None}
    is_ours = isinstance(scheduler, Scheduler)
    missing = [name for name in ("set_timesteps", "step", "config") if not hasattr(scheduler, name)]
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        missing.append("add_noise")
    if missing:
        raise InputError(
            f"scheduler is a {type(scheduler).__name__} without {', '.join(missing)}. Pass a scheduler of "
            f"retouch or an object with the methods of a diffusers scheduler; make one with from_config.",
            parameter="scheduler",
        )
    takes_mu = inspect.signature(scheduler.plan if is_ours else scheduler.set_timesteps).parameters
    if mu is not None and "mu" not in takes_mu:
        raise InputError(
            f"scheduler is a {type(scheduler).__name__}, which takes no mu. This model was trained by flow "
            f"matching; use FlowMatchEulerDiscreteScheduler.",
            parameter="scheduler",
        )
    return scheduler.plan(**given, **run) if is_ours else ForeignPlan(scheduler, given, **run)


class ForeignPlan(Plan):
    def __init__(
        self, scheduler: Any, schedule: dict[str, Any], *, device: torch.device | str | None, **run: Any
    ) -> None:
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        for name in schedule.keys() - accepted.keys():
            raise InputError(
                f"{type(scheduler).__name__} does not take custom {name}. Those that do: "
                f"{', '.join(names_accepting(name))}. Use one of them, or give num_inference_steps.",
                parameter=name,
            )
        train_steps = getattr(scheduler.config, "num_train_timesteps", 1000)
        if schedule.get("num_inference_steps", 1) > train_steps:
            raise InputError(
                f"num_inference_steps is {schedule['num_inference_steps']}, but this model was trained with "
                f"{train_steps} timesteps. Give a number from 1 to {train_steps}.",
                parameter="num_inference_steps",
            )
        # All copies are made from this one. It is never stepped, so that its step counter stays at the start.
        self._unused = copy.deepcopy(scheduler)
        self._unused.set_timesteps(**schedule, device=device)
        self._step_takes = inspect.signature(scheduler.step).parameters
        self.order = getattr(scheduler, "order", 1)
        self.initial_sigma = getattr(self._unused, "init_noise_sigma", 1.0)  # flow matching has none
        found = self._unused.timesteps
        settings = {"num_train_timesteps": train_steps}
        super().__init__(settings, found.cpu().numpy(), device=found.device, **run)

    def forget(self) -> None:
        self._running = self._copy_at(self.start)

    def scale_input(self, latents: Tensor, step: Step) -> Tensor:
        if step.index == self.start:
            self.forget()
        if not hasattr(self._running, "scale_model_input"):  # as flow matching, which never scales
            return latents
        return self._running.scale_model_input(latents, step.timestep)

    def advance_with_original(
        self, prediction: Tensor, step: Step, latents: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        # The base would call `forget` at the first step, after scale_input has already started the copy.
        return self.move(prediction, step, latents)

    def move(self, prediction: Tensor, step: Step, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        # Without prev_timestep, a step of UnCLIP goes to the next timestep of training.
        after = None if step.next is None else step.next.timestep
        extra = {"eta": self.eta, "generator": self.generator, "prev_timestep": after}
        taken = {name: value for name, value in extra.items() if name in self._step_takes}
        result = self._running.step(prediction, step.timestep, latents, **taken)
        return result.prev_sample, getattr(result, "pred_original_sample", None)

    def noised(self, original: Tensor, noise: Tensor, step: Step) -> Tensor:
        scheduler, timestep = self._copy_at(step.index), step.timestep.reshape(1)
        if hasattr(scheduler, "scale_noise"):  # flow matching
            return scheduler.scale_noise(original, timestep, noise)
        return scheduler.add_noise(original, noise, timestep)

    def _copy_at(self, index: int) -> Any:
        """Return a copy that takes this step next. It costs 0.3 ms: a scheduler is a few small tensors."""
        scheduler = copy.deepcopy(self._unused)
        if hasattr(scheduler, "set_begin_index"):  # others find their place by the timestep
            scheduler.set_begin_index(index)
        return scheduler
