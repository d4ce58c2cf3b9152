"""Pictures in terminals that can show them, by the protocols of kitty and of iTerm2.

The environment tells the terminal's kind. A query is not sent, since terminals that do not know it print it.
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
_SIDE = 480  # pixels; the terminal would only shrink a larger picture
_CHUNK = 4096  # characters of one of kitty's escape sequences
_ID = 7243  # kitty replaces the picture of the same number

SAVE_CURSOR, RESTORE_CURSOR = "\x1b7", "\x1b8"


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """Return the protocol of this terminal; None if it shows no pictures or runs in a multiplexer."""
    if environment.get("TMUX") or environment.get("STY") or environment.get("TERM", "dumb") == "dumb":
        return None
    program = environment.get("TERM_PROGRAM", "")
    if environment.get("TERM") in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def encoded(image: Image.Image, how: Protocol, rows: int = ROWS, columns: int = _COLUMNS) -> str:
    """Return the characters that show a picture at the cursor, in at most this many rows and columns."""
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
    # q=2: no answer, which would look like typed input. C=1: the cursor stays.
    settings = f"a=T,f=100,q=2,C=1,i={_ID},p=1,c={across},r={down}"
    return "".join(
        f"\x1b_G{settings + ',' if index == 0 else ''}m={int(index + 1 < len(pieces))};{piece}\x1b\\"
        for index, piece in enumerate(pieces)
    )
