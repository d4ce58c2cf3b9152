"""The map of source files in CONTRIBUTING.md says what the files say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_map_is_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "write_file_map.py"))
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert written["with_map"](page) == page, "run python scripts/write_file_map.py"
    assert "`denoise.py`" in page
