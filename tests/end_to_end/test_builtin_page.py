"""The examples of docs/builtin.md run as they stand, offline, and its table is what the checkpoint says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import done, write_mask, write_photo
from pages import examples, page

from retouch.checkpoints.profile import Known, Profile
from retouch.editing import models, verbs

PAGE = page("docs/builtin.md")


def test_examples(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)
    monkeypatch.setattr(verbs, "_kept", None)
    monkeypatch.setattr(models, "_noticed", False)
    write_photo(Path("photo.png"))
    write_mask(Path("mask.png"))
    names: dict[str, Any] = {}
    for block in examples(PAGE):
        exec(compile(block, "builtin.md", "exec"), names)
    assert names["edit"].settings["model"] == "builtin" and names["without"].settings["verb"] == "erase"
    assert names["cat"].size == (128, 128) and names["result"].size == (80, 64)
    assert Path("compared.png").is_file() and len(names["sheet"].results) == 2
    for line in examples(PAGE, "sh")[0].splitlines():
        done(*shlex.split(line)[1:], *(["--steps", 1] if "inpaint" in line else []))
    assert np.asarray(names["edit"].image).shape == (64, 80, 3) and hub.requests == []


def test_the_table_is_what_the_checkpoint_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", PAGE, flags=re.MULTILINE)
    told = {name: [cell.strip(' "') for cell in cells] for name, *cells in rows}
    profile = Profile.of("builtin")
    sets = [profile.defaults_of(verb) for verb in ("inpaint", "erase", "outpaint")]
    assert {name for said in sets for name in said} <= set(told)
    for name, cells in told.items():
        for cell, said in zip(cells, sets, strict=True):
            assert cell == ("none" if said.get(name) is None else str(said[name])), name


def test_the_warning_is_quoted_as_it_is() -> None:
    profile = Profile.of("builtin")
    assert f"It knows {len(profile.names)} things by name" in PAGE
    assert profile.near("a leather sofa") == ["chair"]


def test_the_profile_of_the_page_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "retouch.json").write_text(examples(PAGE, "json")[0])
    (entries,) = re.findall(r"`(\[\{.*\}\])`", PAGE)
    (tmp_path / "names.json").write_text(entries)
    profile = Profile.of(tmp_path)
    assert profile.names == [Known("chair", ["seat"], ["sofa"])]
    liked = {"steps": 20, "guidance_scale": 2.5, "fill": "telea", "strength": 0.8}
    assert profile.defaults_of("erase") == liked and profile.square_crops
