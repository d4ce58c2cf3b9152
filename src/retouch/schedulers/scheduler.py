"""The base of all schedulers: settings, the files that hold them, and the methods that diffusers users know.

A scheduler is settings; `plan` starts a run. The methods of diffusers (`set_timesteps`, `step` and others)
work on a private plan, so they serve one run at a time, as in diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Generator, Tensor
from typing_extensions import Self

from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.schedulers.noise_schedule import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    Settings,
    chosen_sigma_spacing,
)
from retouch.schedulers.plan import Plan

CONFIG_FILE = "scheduler_config.json"
_DEFAULTED = "_use_default_values"


class SchedulerConfig(dict[str, Any]):
    """Read-only settings, also as attributes. Settings of other schedulers are kept for these to read back.

    It is a dict because diffusers' `from_config` accepts no other mapping.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "A scheduler's config is read-only. Make another with from_config(config, key=value)."
        )

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


@dataclass
class SchedulerOutput:
    """The result of `step`."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value


class Scheduler:
    """Base of the schedulers. A subclass names its settings, its plan and how it spaces timesteps."""

    common: ClassVar[Settings] = {"num_train_timesteps": 1000}
    defaults: ClassVar[Settings] = {}  # its own settings, and its values of common ones
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "beta_schedule": BETA_SCHEDULES,
        "prediction_type": PREDICTION_TYPES,
        "timestep_spacing": TIMESTEP_SPACINGS,
    }
    accepts: ClassVar[tuple[str, ...]] = ()  # the custom schedules: "timesteps", "sigmas"
    fewest: ClassVar[Mapping[str, int]] = {"timesteps": 1, "sigmas": 2}  # shortest list that makes a step
    plan_class: ClassVar[type[Plan]]

    def __init__(self, **settings: Any) -> None:
        known = {**self.common, **self.defaults}
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} does not know {', '.join(unknown)}. Its settings are "
                f"{', '.join(sorted(known))}. Leave the others out, or use from_config, which keeps "
                f"settings of other schedulers without using them.",
                parameter=unknown[0],
            )
        self.settings = known | {key: _plain(value) for key, value in settings.items()}
        for key, allowed in {**Scheduler.choices, **self.choices}.items():
            if key in self.settings and self.settings[key] not in allowed:
                raise ConfigError(
                    f"{type(self).__name__}: {key} = {self.settings[key]!r} is not supported. "
                    f"Choose {', '.join(map(repr, allowed))}.",
                    parameter=key,
                )
        chosen_sigma_spacing(self.settings)
        self.config = self._make_config({}, settings)
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def _make_config(self, extra: Mapping[str, Any], given: Iterable[str]) -> SchedulerConfig:
        # Another scheduler, ours or diffusers', uses its own defaults for the settings in this list.
        defaulted = [key for key in self.settings if key not in given]
        names = {"_class_name": type(self).__name__, _DEFAULTED: defaulted}
        return SchedulerConfig({**extra, **self.settings, **names})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Make a scheduler from the config of another one, ours or diffusers', of this or another class.

        `Scheduler.from_config` makes one of the class that the config names.
        """
        if cls is Scheduler:
            from retouch.schedulers import by_name

            return by_name(config.get("_class_name", "")).from_config(config, **changes)  # type: ignore[return-value]
        dropped = {*config.get(_DEFAULTED, ()), _DEFAULTED}
        values = {key: value for key, value in config.items() if key not in dropped} | changes
        known = {**cls.common, **cls.defaults}
        given = {key: value for key, value in values.items() if key in known}
        scheduler = cls(**given)
        extra = {key: _plain(value) for key, value in values.items() if key not in known}
        scheduler.config = scheduler._make_config(extra, given)
        return scheduler

    @classmethod
    def from_pretrained(cls, name: str | Path, *, subfolder: str | None = None, **changes: Any) -> Self:
        """Read `scheduler_config.json` of a local folder or a hub id.

        revision, variant, cache_dir, token, local_files_only and force_download find the checkpoint; other
        keywords change settings.
        """
        location = ("revision", "variant", "cache_dir", "token", "local_files_only", "force_download")
        options = {key: changes.pop(key) for key in location if key in changes}
        path = Path(name).expanduser()
        if not path.exists():
            from retouch.checkpoints.locate import Checkpoint

            path = Path(Checkpoint.open(str(name), **options).fetch([subfolder]))
        files = [path, path / (subfolder or "") / CONFIG_FILE, path / CONFIG_FILE]
        file = next((candidate for candidate in files if candidate.is_file()), None)
        if file is None:
            raise CheckpointError(
                f"{files[1]} is not there. A scheduler is read from {CONFIG_FILE}. Give the folder that "
                f'holds it, or subfolder="scheduler" for a whole checkpoint.',
                parameter="subfolder",
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{file} is not JSON ({error}). Download the checkpoint again.",
                parameter="name",
            ) from error
        return cls.from_config(config, **changes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `scheduler_config.json`, which diffusers can read too."""
        config = {key: value for key, value in self.config.items() if key != _DEFAULTED}
        config.setdefault("_diffusers_version", "0.42.0")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (path / CONFIG_FILE).write_text(text, encoding="utf-8")

    save_config = save_pretrained

    def __repr__(self) -> str:
        given = {key: value for key, value in self.settings.items() if key not in self.config[_DEFAULTED]}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    def __len__(self) -> int:
        return int(self.settings["num_train_timesteps"])

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int | float] | None = None,
        sigmas: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        eta: float = 0.0,
    ) -> Plan:
        """Start a run: give the number of steps, or the timesteps, or the sigmas (with the final one)."""
        raise NotImplementedError

    def _check_request(
        self,
        steps: int | None,
        timesteps: Sequence[int | float] | None,
        sigmas: Sequence[float] | None,
    ) -> None:
        given = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise InputError(
                f"{' and '.join(names) or 'Nothing'} given. A run takes exactly one of num_inference_steps, "
                f"timesteps and sigmas; leave out the others.",
                parameter=names[-1] if names else "num_inference_steps",
            )
        if steps is not None:
            if not 1 <= steps <= len(self):
                raise InputError(
                    f"num_inference_steps is {steps}, but this model was trained with {len(self)} timesteps. "
                    f"Give a number from 1 to {len(self)}.",
                    parameter="num_inference_steps",
                )
            return
        name = names[0]
        if name not in self.accepts:
            from retouch.schedulers import names_accepting

            raise InputError(
                f"{type(self).__name__} does not take custom {name}. Those that do: "
                f"{', '.join(names_accepting(name))}. Use one of them, or give num_inference_steps.",
                parameter=name,
            )
        values = np.asarray(given[name], dtype=np.float64)
        least = self.fewest[name]
        if values.ndim != 1 or len(values) < least or not np.isfinite(values).all() or values.min() < 0:
            raise InputError(
                f"{name} is {given[name]}. It must be a list of at least {least} finite numbers, none "
                f"below 0. Correct the list, or give num_inference_steps.",
                parameter=name,
            )

    @staticmethod
    def _check_falling(name: str, values: np.ndarray) -> None:
        if (np.diff(values) >= 0).any():
            raise InputError(
                f"{name} is {values.tolist()}. Each must be smaller than the one before it; sort the list "
                f"from noisy to clean and remove duplicates.",
                parameter=name,
            )

    # The methods below are those of diffusers' schedulers, for one run at a time.

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int | float] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """Start the private plan that the methods below work on; takes the arguments of `plan`."""
        self._plan = self.plan(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas, device=device, **options
        )
        self.num_inference_steps = num_inference_steps or -(-len(self._plan) // self.order)
        self._step_index = self._begin_index = None

    def _training_plan(self) -> Plan:
        """Return all timesteps of training, which training code reads without `set_timesteps`."""
        return self.plan(len(self))

    @property
    def _current(self) -> Plan:
        if self._plan is None:
            self._plan = self._training_plan()
        return self._plan

    @property
    def timesteps(self) -> Tensor:
        return self._current.all_timesteps

    @property
    def init_noise_sigma(self) -> float | Tensor:
        return self._current.initial_sigma

    @property
    def order(self) -> int:
        return self.plan_class.order

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin_index = begin_index

    def _index_of(self, timestep: int | float | Tensor) -> int:
        value = timestep.item() if isinstance(timestep, Tensor) else timestep
        found = [index for index, known in enumerate(self._current.timestep_values) if known == value]
        if not found:
            raise InputError(
                f"{value} is not among this scheduler's {len(self._current.steps)} timesteps. "
                f"Pass one of scheduler.timesteps; call set_timesteps first.",
                parameter="timestep",
            )
        # Heun's second evaluation has the timestep of the next step, so a timestep may occur twice. A run
        # starts at the second place, which is the start of a step.
        return found[0] if len(found) == 1 else found[1]

    def _locate(self, timestep: int | float | Tensor) -> int:
        plan, index = self._current, self._step_index
        value = timestep.item() if isinstance(timestep, Tensor) else timestep
        if index is None:
            index = self._index_of(timestep) if self._begin_index is None else self._begin_index
        elif index >= len(plan.steps) or plan.timestep_values[index] != value:
            index = self._index_of(timestep)
        self._step_index = index
        return index

    def _indices_to_noise_to(self, timesteps: Tensor) -> list[int]:
        """Return a position for each row: of its timestep or, after `set_begin_index`, of the next step."""
        if self._begin_index is None:
            return [self._index_of(timestep) for timestep in timesteps]
        index = self._begin_index if self._step_index is None else self._step_index
        return [index] * len(timesteps)

    def scale_model_input(self, sample: Tensor, timestep: int | float | Tensor | None = None) -> Tensor:
        if timestep is None:
            return sample
        return self._current.scale_input(sample, self._current.steps[self._locate(timestep)])

    def step(
        self,
        model_output: Tensor,
        timestep: int | float | Tensor,
        sample: Tensor,
        *,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        plan, index = self._current, self._locate(timestep)
        plan.eta, plan.generator = eta, generator
        moved, original = plan.advance_with_original(model_output, plan.steps[index], sample)
        self._step_index = index + 1
        if return_dict:
            return SchedulerOutput(moved, original)
        return (moved,) if original is None else (moved, original)
