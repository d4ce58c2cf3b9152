"""Schedulers: from a model's predictions to less noisy latents. Arithmetic only, no models.

The classes are found here by the names that checkpoints use, and imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retouch.errors import ConfigError

if TYPE_CHECKING:
    from retouch.schedulers.scheduler import Scheduler

_MODULES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "kdpm2",
    "KDPM2AncestralDiscreteScheduler": "kdpm2",
    "DPMSolverMultistepScheduler": "dpm_multistep",
    "DPMSolverSinglestepScheduler": "dpm_singlestep",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "UnCLIPScheduler": "unclip",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
}

__all__ = [*_MODULES, "by_name"]


def by_name(class_name: str) -> type[Scheduler]:
    """Return the scheduler class of a name in model_index.json or scheduler_config.json."""
    if class_name not in _MODULES:
        raise ConfigError(
            f"There is no scheduler {class_name!r}. Known: {', '.join(_MODULES)}. Use one of them; its "
            f"from_config takes over the settings of yours."
        )
    return getattr(import_module(f"retouch.schedulers.{_MODULES[class_name]}"), class_name)


def names_accepting(schedule: str) -> list[str]:
    """Return the names of the diffusion schedulers that take custom "timesteps" or "sigmas"."""
    from retouch.schedulers.diffusion import DiffusionScheduler

    makers = [by_name(name) for name in _MODULES]
    return [
        make.__name__ for make in makers if issubclass(make, DiffusionScheduler) and schedule in make.accepts
    ]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return by_name(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
