"""The errors that a user can meet.

    RetouchError
    ├── InputError        (ValueError)    an argument is wrong or contradicts another
    ├── ConfigError       (ValueError)    a config asks for something that we do not support
    ├── CheckpointError   (OSError)       a file is missing, broken or of the wrong kind
    │   └── OfflineError                  it is not on this machine, and the hub does not answer
    ├── DeviceError       (ValueError)    a device that is not there
    ├── NumericsError     (ArithmeticError)  the latents became NaN or infinite
    └── Cancelled                         the caller stopped the run between two steps

Each message has three parts: what was given, what is accepted, what to do next. `error.parameter` is the name
of the argument that it concerns, where there is one, so that a command line or a server can name its own flag
or field.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RetouchError(Exception):
    """Base of all errors that retouch raises on purpose."""

    def __init__(self, message: str = "", *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class InputError(RetouchError, ValueError):
    """An argument is wrong, or two of them contradict each other."""


class ConfigError(RetouchError, ValueError):
    """A model or scheduler config asks for something that we do not support."""


class CheckpointError(RetouchError, OSError):
    """A checkpoint's file is missing, broken or of the wrong kind."""


class OfflineError(CheckpointError):
    """A checkpoint is not on this machine and the hub cannot be reached."""


class DeviceError(RetouchError, ValueError):
    """A device was asked for that this machine does not have."""


class NumericsError(RetouchError, ArithmeticError):
    """The latents became NaN or infinite, so no picture can come of them."""


class Cancelled(RetouchError):
    """The caller stopped the run between two steps."""


@contextmanager
def errors_about(argument: str) -> Iterator[None]:
    """Let errors about a checkpoint or its contents carry the argument that it was given by.

    The functions that find and read checkpoints call it `name`. An error about another argument, such as
    `use_safetensors`, is left as it is.
    """
    try:
        yield
    except CheckpointError as error:
        if error.parameter in (None, "name"):
            error.parameter = argument
        raise
