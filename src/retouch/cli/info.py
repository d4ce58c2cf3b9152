"""`retouch info`: identify a file, and show the command that makes a picture of retouch again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from retouch.cli.options import JsonFlag, PickledFlag, short_names
from retouch.cli.say import answer, megabytes, one_line


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A picture, a checkpoint (folder or file), a LoRA, a ControlNet; a short name or hub id.",
            autocompletion=short_names,
        ),
    ],
    *,
    pickled: PickledFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show what a checkpoint or a picture is."""
    from retouch.cli.recognition import recognised

    facts = recognised(file, pickled=pickled)
    if json:
        answer(facts)
        return
    typer.echo(f"{one_line(file)}: {one_line(facts['what'])}")
    for key, value in facts.items():
        if key not in ("kind", "what", "command", "use", "settings"):
            typer.echo(f"  {key.replace('_', ' ')}: {_shown(key, value)}")
    for key, value in facts.get("settings", {}).items():
        typer.echo(f"  {one_line(key).replace('_', ' ')}: {_shown(key, value)}")
    if "command" in facts:
        typer.echo(f"again:\n  {one_line(facts['command'])}")
    if "use" in facts:
        typer.echo(f"use:\n  {one_line(facts['use'])}")


def _shown(key: str, value: Any) -> str:
    if key == "bytes":
        return megabytes(value)
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(one_line(entry) for entry in value) or "-"
    return one_line(value)
