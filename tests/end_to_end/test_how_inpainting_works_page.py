"""The examples of docs/how-inpainting-works.md run as they stand, in the order of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn
from pages import examples, page
from PIL import Image
from pipeline_pairs import mask, photo

PAGE = page("docs/how-inpainting-works.md")
BLOCKS = examples(PAGE)


def test_examples(
    hub: HubStandIn, tiny_sd: Path, tiny_sd_inpaint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(0, 72, 56).save("photo.png")
    mask(width=72, height=56).save("mask.png")
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", tiny_sd)
    hub.add("stable-diffusion-v1-5/stable-diffusion-inpainting", tiny_sd_inpaint)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "how-inpainting-works.md", "exec"), names)
    assert names["result"].images[0].size == (72, 56)
    assert 20 <= len(names["recording"].frames) <= 40
    with Image.open("process.gif") as animation:
        assert animation.n_frames == len(names["recording"].frames)
    assert {result.column for result in names["comparison"].results} == {"simple", "made for inpainting"}
    assert [result.column for result in names["strengths"].results] == [
        f"strength {s}" for s in (0.6, 0.8, 1.0)
    ]
    assert Path("simple-or-special.png").stat().st_size > 1000
    assert names["image"].size == (72, 56)
