"""Runs of the command line in this process, and small pictures for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from retouch.cli.app import app

# None removes a variable, which may be set where the tests run.
PLAIN = {"RETOUCH_MODEL": None, "NO_COLOR": "1", "TERM_PROGRAM": None, "COLUMNS": "100"}
HOLE = (24, 16, 56, 48)


def retouch(*arguments: Any, input: str | None = None, **environment: str) -> Any:
    """Run a command and return its result with exit_code, stdout and stderr."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(
        app, words, input=input, env=PLAIN | environment, catch_exceptions=False, prog_name="retouch"
    )


def done(*arguments: Any, **environment: str) -> Any:
    """Run a command that must succeed."""
    result = retouch(*arguments, **environment)
    assert result.exit_code == 0, result.stderr
    return result


def answered(*arguments: Any, **environment: str) -> dict[str, Any]:
    """Run a command with --json that must succeed, and return its answer."""
    answer: dict[str, Any] = json.loads(done(*arguments, "--json", **environment).stdout)
    return answer


def refused(*arguments: Any, **environment: str) -> str:
    """Run a command that must fail with one line, and return the line."""
    result = retouch(*arguments, **environment)
    assert result.exit_code == 1, (result.exit_code, result.output)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return str(lines[0])


def write_photo(path: Path, size: tuple[int, int] = (80, 64), mode: str = "RGB") -> np.ndarray:
    """Write a picture of random pixels, and return the pixels."""
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image)


def write_mask(path: Path, size: tuple[int, int] = (80, 64), box: tuple[int, ...] = HOLE) -> np.ndarray:
    """Write a white box on black, and return its place."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return np.asarray(mask) > 0


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
