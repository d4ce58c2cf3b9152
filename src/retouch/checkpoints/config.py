"""Model settings: a JSON dictionary becomes a frozen dataclass, and back.

A config with a setting that the model does not implement is refused. An unknown key passes only if its value
means "off": a model whose config is half understood would load and draw wrong pictures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from retouch.errors import CheckpointError, ConfigError

_OFF: tuple[object, ...] = (None, False, 0, "", "default", (), {})

# Training with averaged weights leaves these keys in the configs of many checkpoints, such as SDXL
# inpainting's. They do not describe the model.
_TRAINING_KEYS = frozenset(
    ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Config(Mapping[str, Any]):
    """Base of the model configs: read by attribute, and a mapping for code that expects one."""

    # Keys that we do not implement, with the one value that changes nothing, such as a kernel size of 3.
    neutral: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the config") -> Self:
        """Make a config from a dictionary; errors name `source`."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if key in known or key.startswith("_") or key in _TRAINING_KEYS:
                continue
            value = _frozen(value)
            if value in _OFF or (key in cls.neutral and value == _frozen(cls.neutral[key])):
                continue
            supported = (
                f"Supported: {cls.neutral[key]!r}"
                if key in cls.neutral
                else f"Supported settings: {', '.join(sorted(known))}"
            )
            raise ConfigError(
                f"{source}: {key} = {value!r} is not supported by {cls.__name__}. {supported}. Use a "
                f"checkpoint without this setting, or open an issue that names the checkpoint.",
                parameter=key,
            )
        try:
            return cls(**{key: _frozen(value) for key, value in values.items() if key in known})
        except ConfigError as error:  # from a subclass's __post_init__, which does not know the file
            raise ConfigError(f"{source}: {error}", parameter=error.parameter) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in types that JSON can hold."""
        return {field.name: _thawed(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return any(field.name == key for field in dataclasses.fields(self))

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(dataclasses.fields(self))


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file with settings."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not there. A model's folder has {path.name} and weights. Check the path, and "
            f"`subfolder` if the model is a part of a pipeline.",
            parameter="subfolder",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}). A file of settings is expected. Download or save the "
            f"checkpoint again.",
            parameter="name",
        ) from error
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(settings).__name__}. A dictionary of settings is expected. Download "
            f"or save the checkpoint again.",
            parameter="name",
        )
    return settings
