"""The examples of docs/cli.md run as they stand, in order, against the hub's stand-in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import done, read
from pages import examples, page
from PIL import Image, ImageDraw

from retouch.cli import comparison, verbs
from retouch.editing.models import SHORT_NAMES

PAGE = page("docs/cli.md")
LINES = [line for block in examples(PAGE, "sh") for line in block.splitlines() if line]


def test_examples(
    hub: Any, tiny_sd: Path, tiny_sd_inpaint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Fewer steps and smaller sizes only save time here.
    run = verbs.run

    def quickly(
        verb: str, photo: str, mask: Any, paint: Any, options: dict[str, Any], *more: Any, **how: Any
    ) -> None:
        less = {} if how.get("fills") else {"steps": 2, "size": 64}
        run(verb, photo, mask, paint, {**options, **less}, *more, **how)

    monkeypatch.setattr(verbs, "run", quickly)
    monkeypatch.setitem(comparison._SETTINGS, "steps", ("num_inference_steps", lambda text: 2))
    hub.add(SHORT_NAMES["sd15-inpaint"].repository, tiny_sd_inpaint)
    hub.add(SHORT_NAMES["sd15"].repository, tiny_sd)
    photo = Image.new("RGB", (600, 450), (90, 140, 90))
    draw = ImageDraw.Draw(photo)
    draw.ellipse((380, 220, 519, 399), fill=(200, 60, 50))
    draw.rectangle((40, 30, 120, 90), fill=(0x30, 0xA0, 0xFF))
    photo.save("photo.png")
    mask = Image.new("L", photo.size)
    mask.paste(255, (380, 220, 520, 400))
    mask.save("mask.png")
    photo.putalpha(mask.point(lambda level: 255 - level))
    photo.save("cutout.png")

    environment = {}
    for line in LINES:
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            name, value = words[1].split("=")
            environment[name] = value
        else:
            assert words[0] == "retouch"
            done(*words[1:], **environment)

    pixels, inside = np.asarray(photo.convert("RGB")), np.asarray(mask) > 0
    for name in ("bench.png", "empty.png"):
        changed = (read(name) != pixels).any(axis=-1)
        assert not changed[:, :300].any()
        assert changed[inside].mean() > 0.9 or name == "empty.png"
    assert (read("empty.png")[inside] == (90, 140, 90)).all(), "the plain background continues"
    for name in ("wide.png", "wider.png"):
        assert read(name).shape == (450, 800, 3)
        np.testing.assert_array_equal(read(name)[:, 130:670], pixels[:, 30:570])
    marked = read("marked.png") > 0  # by GrabCut, the last
    assert (marked & inside).sum() / (marked | inside).sum() > 0.7
    np.testing.assert_array_equal(read("cutout-mask.png"), 255 * inside)
    assert Path("table.md").read_text().count("\n") == 2 + 2 * 2


def test_there_are_examples_of_every_command() -> None:
    from retouch.cli.app import app

    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands | {"models"} == {line.split()[1] for line in LINES if line.startswith("retouch")}


def test_the_page_names_the_exit_codes() -> None:
    for code in (0, 1, 2, 130):
        assert f"| {code} |" in PAGE
