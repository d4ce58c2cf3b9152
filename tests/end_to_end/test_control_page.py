"""The examples of docs/control.md run as they stand, against the hub's stand-in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_stand_in import HubStandIn
from pages import examples, page
from pipeline_pairs import mask, photo
from tiny_controls import tiny_controlnet

import retouch

PAGE = page("docs/control.md")
BLOCKS = examples(PAGE)


def test_examples(hub: HubStandIn, tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(0, 70, 45).save("photo.png")
    mask(width=70, height=45).save("mask.png")
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", tiny_sd)
    named = sorted(set(re.findall(r'"(lllyasviel/\w+)"', "".join(BLOCKS))))
    assert len(named) == 3
    for seed, name in enumerate(named):
        tiny_controlnet(tiny_sd, seed).save_pretrained(tmp_path / str(seed))
        hub.add(name, tmp_path / str(seed))
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "control.md", "exec"), names)
    assert names["image"].size == (70, 45)
    assert type(names["both"]) is retouch.StableDiffusionControlNetPipeline
    lines, hole = np.asarray(names["lines"]), np.asarray(names["mask"].convert("L")) > 0
    assert not lines[hole].any() and lines[~hole].any()


def test_the_page_names_what_there_is() -> None:
    rows = re.findall(r"^\| `(\w+)\(([^`]*)\)`", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["canny", "scribble", "tile", "inpaint_condition"]
    for name, arguments in rows:
        function: Callable[..., Any] = getattr(retouch.control, name)
        code = function.__code__
        assert [part.split("=")[0] for part in arguments.split(", ")] == list(
            code.co_varnames[: code.co_argcount]
        )
        defaults = [float(part.split("=")[1]) for part in arguments.split(", ") if "=" in part]
        assert defaults == list(function.__defaults__ or ())
