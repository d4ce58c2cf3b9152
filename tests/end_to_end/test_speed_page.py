"""docs/speed.md: its examples run, and its tables say what the words stand for."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import done, read, write_mask, write_photo
from pages import examples, page

import retouch
from retouch.editing import verbs
from retouch.editing.speed import SPEEDS

PAGE = page("docs/speed.md")


def test_the_table_has_what_each_word_stands_for() -> None:
    told = dict(re.findall(r"^\| `(\w+)`(?: \(the default\))? \| (.+) \|$", PAGE, flags=re.MULTILINE))
    assert list(told) == list(SPEEDS)
    for word, text in told.items():
        call = re.search(r"`(.+)`", text)
        keywords: list[ast.keyword] = []
        if call:
            keywords = ast.parse(f"f({call[1]})", mode="eval").body.keywords  # type: ignore[attr-defined]
        assert {entry.arg: ast.literal_eval(entry.value) for entry in keywords} == SPEEDS[word]


def test_examples(tiny_sd_inpaint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    """With a tiny checkpoint in place of the built-in one."""
    retouch.AutoencoderTiny(decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path / "taesd")
    hub.add("madebyollin/taesd", tmp_path / "taesd")
    hub.add("stable-diffusion-v1-5/stable-diffusion-inpainting", tiny_sd_inpaint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETOUCH_MODEL", str(tiny_sd_inpaint))
    monkeypatch.setattr(verbs, "_kept", None)
    pixels = write_photo(tmp_path / "photo.png")
    write_mask(tmp_path / "mask.png")
    names: dict[str, Any] = {}
    for block in examples(PAGE):
        exec(compile(block.replace('"builtin"', repr(str(tiny_sd_inpaint))), "speed.md", "exec"), names)
    assert names["edit"].settings["speed"] == "fast"
    assert names["editor"].pipeline.preview_decoder is names["tiny"]
    assert len(names["pictures"]) == 2 and names["pictures"][0].size == (80, 64)
    for line in "".join(examples(PAGE, "sh")).splitlines():
        done(*shlex.split(line)[1:], RETOUCH_MODEL=str(tiny_sd_inpaint))
    assert (read("photo-inpaint.png") != pixels).any()
    assert isinstance(names["pipeline"], retouch.StableDiffusionInpaintPipeline)
    assert not np.array_equal(names["pictures"][0], names["pictures"][1])
