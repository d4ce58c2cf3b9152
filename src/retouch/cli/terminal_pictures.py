"""Pictures in terminals that can show them: the protocols of kitty and of iTerm2, told from the environment.

No terminal is asked, since one that does not know the question would print it.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm2"]

ROWS = 12
_COLUMNS = 72
_SIDE = 480  # pixels; more would only be sent to be shrunk
_CHUNK = 4096  # characters of one of kitty's escape sequences
_ID = 7243  # by which kitty knows the picture to replace

SAVE_CURSOR, RESTORE_CURSOR = "\x1b7", "\x1b8"


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How this terminal takes pictures; None if it does not, or if a multiplexer stands in between."""
    if environment.get("TMUX") or environment.get("STY") or environment.get("TERM", "dumb") == "dumb":
        return None
    program = environment.get("TERM_PROGRAM", "")
    if environment.get("TERM") in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def encoded(image: Image.Image, how: Protocol, rows: int = ROWS, columns: int = _COLUMNS) -> str:
    """The characters that show a picture at the cursor, in at most so many rows and columns."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    # A character cell is about twice as high as wide.
    across = max(1, min(columns, round(2 * rows * small.width / small.height)))
    down = max(1, min(rows, round(across * small.height / small.width / 2)))
    file = io.BytesIO()
    small.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    if how == "iterm2":
        return f"\x1b]1337;File=inline=1;width={across};height={down};preserveAspectRatio=1:{data}\a"
    pieces = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # q=2: no answer, which would arrive as if typed. C=1: the cursor stays.
    settings = f"a=T,f=100,q=2,C=1,i={_ID},p=1,c={across},r={down}"
    return "".join(
        f"\x1b_G{settings + ',' if index == 0 else ''}m={int(index + 1 < len(pieces))};{piece}\x1b\\"
        for index, piece in enumerate(pieces)
    )
