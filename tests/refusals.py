"""Checks of errors by what they say: which argument they concern, and the facts that any good message has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from retouch.errors import InputError, RetouchError


@contextmanager
def refuses(
    parameter: str | None, *facts: Any, error: type[RetouchError] = InputError
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Fail unless the block raises an error that carries the argument's name and states each of the facts.

    A fact is a number, a name or a few words, such as an accepted value. It may stand anywhere in the text.
    `parameter` is None for an error about something other than an argument.
    """
    with pytest.raises(error) as caught:
        yield caught
    message = " ".join(str(caught.value).split())
    assert caught.value.parameter == parameter, message
    missing = [fact for fact in map(str, facts) if fact not in message]
    assert not missing, f"{missing} are not in: {message}"
