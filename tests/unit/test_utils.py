from __future__ import annotations

import subprocess
import sys


def test_loading_a_picture_needs_no_torch() -> None:
    code = """
import sys
from PIL import Image
from retouch.utils import load_image, make_image_grid
make_image_grid([load_image(Image.new("L", (4, 4)))], 1, 1)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0
