from __future__ import annotations

import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retouch.editing.models import MODELS
from retouch.utils import load_image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    runpy.run_path(str(EXAMPLES / "demo.py"))["main"](folder)
    return folder


def test_the_demo_changes_the_holes_and_nothing_far_from_them(folder: Path) -> None:
    names = ("photo", "rock-mask", "erased", "boat-mask", "result", "before-after")
    photo, rock, erased, place, result, pair = (
        np.asarray(load_image(folder / f"{name}.png")) for name in names
    )
    for before, mask, after in ((photo, rock, erased), (erased, place, result)):
        changed = (after != before).any(axis=-1)
        rows, columns = np.nonzero(mask[..., 0])
        assert changed[mask[..., 0] == 255].mean() > 0.1
        changed[rows.min() - 10 : rows.max() + 11, columns.min() - 10 : columns.max() + 11] = False
        assert not changed.any()
    assert (pair == np.concatenate([photo, result])).all()
    assert photo.shape == result.shape
    with Image.open(folder / "process.gif") as process:
        assert getattr(process, "n_frames", 1) >= 10
        assert process.size == (720, 360), "the process is shown in the whole photo"


def test_it_says_what_to_look_at_and_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: Any
) -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    demo["main"](tmp_path / "out")
    said = capsys.readouterr().out
    for name in ("before-after.png", "process.gif"):
        assert f"{tmp_path}/out/{name}" in said
    tries = [line.strip() for line in said.splitlines() if line.startswith("    retouch ")]
    assert "retouch models pull sd15-inpaint" in tries and "retouch models show builtin" in tries
    models = {name for line in tries for name in shlex.split(line) if name.startswith("sd")}
    assert models and models <= set(MODELS)
    assert hub.requests == []


def test_its_photo_is_small_and_has_a_licence() -> None:
    told = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    pictures = [path for path in EXAMPLES.iterdir() if path.suffix in (".jpg", ".png")]
    assert pictures and sum(path.stat().st_size for path in pictures) < 100_000
    assert all(f"`{path.name}`" in told for path in pictures) and "public domain" in told
