"""The examples of docs/masks.md run as they stand, and do what the text around them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import examples, page
from PIL import Image

PAGE = page("docs/masks.md")
BLOCKS = examples(PAGE)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    hole = np.zeros((160, 200), np.uint8)
    hole[20:60, 100:150] = 255
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(hole).save("mask.png")
    Image.fromarray(np.dstack([pixels, 255 - hole])).save("cutout.png")
    repainted = Image.new("RGB", (200, 160), (1, 2, 3))
    names: dict[str, Any] = {"repainted": repainted}
    for block in BLOCKS:
        exec(compile(block, "masks.md", "exec"), names)

    np.testing.assert_array_equal(np.asarray(names["mask_of_what_was_erased"]), hole)
    soft = np.asarray(names["soft"].convert("L"))
    assert soft.max() < 255 and ((soft > 0) & (hole == 0)).any()
    assert [names[side] for side in ("left", "top", "right", "bottom")] == [68, 0, 182, 114]
    result = np.asarray(names["result"])
    np.testing.assert_array_equal(result, np.where(hole[..., None] > 0, np.asarray(repainted), pixels))
