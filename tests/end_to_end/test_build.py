"""Installing the package with and without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform == "win32", reason="there, CC does not choose the compiler")
def test_without_a_compiler_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    nothing = {"CC": "no-such-compiler", "CXX": "no-such-compiler", "LDSHARED": "no-such-compiler"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | nothing, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    for part in ("_flash_attention", "_patch_fill"):
        assert 'building extension "retouch.' in told and part in told
    assert told.count("is installed without this part") == 2
    assert not list(tmp_path.rglob("*.so"))
