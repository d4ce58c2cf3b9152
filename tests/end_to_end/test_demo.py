from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from retouch.utils import load_image

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_changes_the_hole_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(DEMO))["main"](tmp_path)
    names = ("photo", "mask", "result", "grid")
    photo, mask, result, grid = (np.asarray(load_image(tmp_path / f"{name}.png")) for name in names)
    hole = mask[..., 0] == 255
    assert (result[~hole] == photo[~hole]).all()
    assert (result[hole] != photo[hole]).any(axis=-1).mean() > 0.9
    assert (grid == np.concatenate([photo, mask, result], axis=1)).all()
    assert "random" in capsys.readouterr().out
