from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retouch.cli.terminal_pictures import encoded, protocol


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),  # over ssh
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux-0/default,1,0"}, None),
        ({"TERM": "screen", "STY": "1.pts", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "dumb", "TERM_PROGRAM": "iTerm.app"}, None),
        ({}, None),
    ],
)
def test_terminals_are_told_by_their_environment(environment: dict[str, str], expected: str | None) -> None:
    assert protocol(environment) == expected


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_kitty_gets_a_png_in_chunks() -> None:
    picture = noise(200, 100)
    text = encoded(picture, "kitty", rows=10)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{head};{body}\x1b\\" for head, body in pieces) == text
    assert len(pieces) > 10 and all(len(body) <= 4096 for _, body in pieces)
    settings: dict[str, Any] = dict(pair.split("=") for pair in pieces[0][0].split(","))
    assert settings.items() >= {"a": "T", "f": "100", "q": "2", "C": "1", "m": "1"}.items()
    assert (settings["c"], settings["r"]) == ("40", "10")  # twice as wide, in cells twice as high
    assert [head for head, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    data = base64.b64decode("".join(body for _, body in pieces))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


def test_iterm2_gets_a_png_of_bounded_size() -> None:
    text = encoded(noise(2000, 1000).convert("CMYK"), "iterm2", rows=12, columns=30)
    match = re.fullmatch(
        r"\x1b\]1337;File=inline=1;width=(\d+);height=(\d+);preserveAspectRatio=1:(.*)\a", text
    )
    assert match is not None and (match[1], match[2]) == ("30", "8")
    assert Image.open(io.BytesIO(base64.b64decode(match[3]))).size == (480, 240)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_odd_shapes_fit(size: tuple[int, int]) -> None:
    match = re.search(r"width=(\d+);height=(\d+)", encoded(noise(*size), "iterm2", rows=12, columns=72))
    assert match is not None and 1 <= int(match[1]) <= 72 and 1 <= int(match[2]) <= 12
