"""The examples of docs/editing.md run as they stand, and do what the text around them says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pages import examples, page
from PIL import Image

import retouch
from retouch.editing import filling, verbs
from retouch.editing.models import SHORT_NAMES
from retouch.editing.options import Options
from retouch.images import seam as seam_module

PAGE = page("docs/editing.md")
BLOCKS = examples(PAGE)


def test_examples(hub: Any, tiny_sd_inpaint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(SHORT_NAMES["sd15-inpaint"].repository, tiny_sd_inpaint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verbs, "_kept", None)
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    mask = np.zeros((90, 120), np.uint8)
    mask[30:50, 40:80] = 255
    Image.fromarray(mask).save("mask.png")
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "editing.md", "exec"), names)
    photo = np.asarray(retouch.load_image("photo.jpg"))
    assert len(names["cat"].images) == 3 and names["cat"].seeds == [1, 2, 3]
    changed = (np.asarray(names["cat"].image) != photo).any(axis=-1)
    assert changed[32:48, 42:78].mean() > 0.9 and not changed[:20].any() and not changed[:, :30].any()
    assert names["wide"].image.size == (160, 90) and names["more"].image.size == (184, 122)
    assert names["without"].settings["verb"] == "erase" and "model" in names["without"].settings
    for name, size in (("empty", (120, 90)), ("wider", (160, 90)), ("copied", (120, 90))):
        assert names[name].image.size == size and names[name].settings["model"] == "patches"
    assert names["copied"].seeds == [3, 4]


def test_the_table_knows_every_option_and_its_default() -> None:
    rows = dict(re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", PAGE, flags=re.MULTILINE))
    told = {name: default for names, default in rows.items() for name in re.findall(r"`(\w+)`", names)}
    defaults = {entry.name: entry.default for entry in dataclasses.fields(Options)}
    assert defaults.keys() - {"prompt"} <= told.keys()
    for name, default in defaults.items():
        written = told.get(name, "").strip(" \"'")
        if (
            name in told
            and isinstance(default, str | float | int)
            and not isinstance(default, bool)
            and default
        ):
            assert written == str(default)


def test_the_formula_is_the_modules() -> None:
    assert seam_module.__doc__ is not None
    (formula,) = re.findall(r"^    seam = (.*)$", seam_module.__doc__, flags=re.MULTILINE)
    assert f"    seam = {formula}" in PAGE


def texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (100, 130, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 40 * soft / soft.std(), 0, 255).astype(np.uint8)


def test_the_table_of_scores_holds() -> None:
    rows = re.findall(r'^\| "(\w+)" \| (\d\.\d+) \| (\d\.\d+) \|$', PAGE, flags=re.MULTILINE)
    assert [fill for fill, _, _ in rows] == ["patches", "telea", "blur", "noise"]
    for fill, seam, detail in rows:
        edits = [filling.erase(texture(seed), (50, 40, 80, 66), fill=fill) for seed in range(4)]
        found = np.mean([(edit.seam, edit.detail) for edit in edits], axis=0)
        np.testing.assert_allclose(found, (float(seam), float(detail)), atol=0.1)
