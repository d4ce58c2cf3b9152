"""Output of the commands: notes to stderr, one line each, and answers to stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer

_COLOURS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW}


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, which a file's name can contain."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def complain(message: object, kind: str | None = None) -> None:
    """Print one line on stderr; `kind` is "error" or "warning"."""
    head = typer.style(f"{kind}:", fg=_COLOURS[kind], bold=True) + " " if kind else ""
    plain = "NO_COLOR" in os.environ or None  # None: colour if stderr is a terminal
    typer.echo(head + one_line(message), err=True, color=False if plain else None)


def answer(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    # Not every number has a JSON form: the seam of a mask without an edge is NaN.
    typer.echo(json.dumps(_finite(value), ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def megabytes(count: float) -> str:
    """Return a number of bytes in a readable unit."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.0f} {units[0]}" if count >= 100 or units[0] == "bytes" else f"{count:.1f} {units[0]}"


def is_terminal() -> bool:
    """Return True if stderr is a terminal, so that a person reads along."""
    return sys.stderr.isatty()
