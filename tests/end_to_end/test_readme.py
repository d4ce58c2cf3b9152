"""The examples of the README and of docs/pipelines.md run as they stand; the file map has every folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import ROOT, examples, page
from PIL import Image

from retouch.utils import load_image

README = page("README.md")
BLOCKS = [*examples(README), *examples(page("docs/pipelines.md"))]


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block{number}" for number in range(1, len(BLOCKS) + 1)])
def test_example(
    code: str,
    hub: Any,
    tiny_sd: Path,
    tiny_sd_inpaint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in re.findall(r'(?:from_pretrained\(\s*|model=)"([^"]+)"', code):
        hub.add(name, tiny_sd_inpaint if "inpainting" in name else tiny_sd)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    mask = Image.new("L", (80, 64))
    mask.paste(255, (24, 16, 56, 48))
    mask.save("mask.png")

    exec(compile(code, "example", "exec"), {"__name__": "__main__"})

    if "result.png" in code:
        result = np.asarray(load_image("result.png"))
        outside = np.asarray(mask) == 0
        assert (result[outside] == pixels[outside]).all()
        assert (result[~outside] != pixels[~outside]).any()


def test_there_are_examples() -> None:
    assert len(examples(README)) >= 1 and len(BLOCKS) >= 4


def test_the_file_map_knows_every_folder() -> None:
    mapped = set(re.findall(r"^\| `([^`]+)/` \|", README, flags=re.MULTILINE))
    packages = {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("src/retouch/**/__init__.py")}
    tests = {folder.relative_to(ROOT).as_posix() for folder in ROOT.glob("tests/[!_.]*/")}
    assert packages | tests <= mapped
    assert [folder for folder in mapped if not (ROOT / folder).is_dir()] == []
