"""Progress of an edit: a bar with step and time left on stderr, and the picture in terminals that show some.

Nothing is shown if stderr is no terminal.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from retouch.cli.say import is_terminal
from retouch.cli.terminal_pictures import RESTORE_CURSOR, ROWS, SAVE_CURSOR, encoded, protocol

if TYPE_CHECKING:
    from PIL import Image

    from retouch.editing.options import Update

_PREVIEW_EVERY = 1.0  # seconds


class StepBar:
    """A progress bar; give its `update` as the `progress` of an edit."""

    def __init__(self, *, preview: bool = True) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._protocol = protocol() if preview and is_terminal() else None
        self._shown = 0.0

    def __enter__(self) -> StepBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, update: Update) -> None:
        """Show one more step."""
        if not is_terminal():
            return
        if self._bar is None:
            self._start()
        rounds = update.variations * update.crops
        done = (update.variation - 1) * update.crops + update.crop - 1
        names = [
            f"{name} {number} of {count}"
            for name, number, count in (
                ("variation", update.variation, update.variations),
                ("crop", update.crop, update.crops),
            )
            if count > 1
        ]
        self._bar.update(
            self._task,
            description=", ".join(names) or "painting",
            completed=done * update.steps + update.step,
            total=rounds * update.steps,
            refresh=True,
        )
        now = time.monotonic()
        if self._protocol is not None and now - self._shown >= _PREVIEW_EVERY:
            self._show(update.preview())
            self._shown = now

    def finish(self, image: Image.Image, box: tuple[int, int, int, int]) -> None:
        """Show the painted part of the result."""
        if self._bar is not None and self._protocol is not None:
            self._show(image.crop(box))

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if self._protocol is not None:
            console.file.write("\n" * ROWS)  # room for the picture, above the bar
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # the result is printed afterwards
            # A thread that redraws the bar would write between a picture's escape sequences.
            auto_refresh=self._protocol is None,
            # Rich would print what we write to stderr above the bar, and the picture with it.
            redirect_stderr=self._protocol is None,
            redirect_stdout=False,
        )
        self._bar.start()
        self._task = self._bar.add_task("painting", total=None)

    def _show(self, picture: Image.Image) -> None:
        assert self._protocol is not None
        # Move up from the bar's end over the bar and the room above it, draw, and return.
        self._bar.console.file.write(
            f"{SAVE_CURSOR}\x1b[{ROWS}A\r{encoded(picture, self._protocol)}{RESTORE_CURSOR}"
        )
        self._bar.console.file.flush()
