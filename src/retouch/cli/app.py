"""All commands in one application, and its entry point."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from retouch import __version__
from retouch.cli import comparison, doctor, info, masks, models, verbs
from retouch.cli.command import STOPPED, command
from retouch.cli.say import complain


class Commands(TyperGroup):
    """The list of commands, in plain text: importing rich takes longer than everything else in it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "rich_markup_mode": None})


app = typer.Typer(
    name="retouch",
    cls=Commands,
    help="Repaint a part of a photo; everything else stays the same, byte for byte.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 not done (one line on stderr says why), 2 wrong usage, 130 Ctrl-C.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retouch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Repaint a part of a photo; everything else stays the same, byte for byte."""


command(app)(verbs.inpaint)
command(app)(verbs.erase)
command(app)(verbs.outpaint)
command(app)(masks.mask)
command(app)(comparison.compare)
command(app)(info.info)
app.add_typer(models.app, name="models")
command(app)(doctor.doctor)


def main() -> None:
    """Run the application; the console script calls this."""
    try:
        app()
    except KeyboardInterrupt:  # outside of a command, for example while modules are imported
        complain("stopped")
        sys.exit(STOPPED)
