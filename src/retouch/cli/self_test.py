"""One inpainting with the built-in checkpoint.

It tells whether all that an edit needs works on this device in this precision. Nothing is downloaded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from retouch.editing.editor import load

_STEPS, _SIDE = 4, 128


@dataclass(frozen=True)
class SelfTest:
    """How it went: `fault` says what is wrong, if anything."""

    seconds: float
    fault: str | None = None


def run_self_test(device: torch.device, dtype: torch.dtype) -> SelfTest:
    """Repaint a square of a small photo; only that may change, and it must."""
    photo = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    hole = np.zeros((_SIDE, _SIDE), bool)
    hole[40:88, 40:88] = True
    editor = load("builtin", device=device, dtype=dtype, progress=False)
    start = time.perf_counter()
    edit = editor.inpaint(photo, hole, "a red apple", steps=_STEPS, seed=0, feather=0)
    seconds = time.perf_counter() - start
    result = np.asarray(edit.image)
    if (result[~hole] != photo[~hole]).any():
        return SelfTest(seconds, "pixels outside the hole changed")
    if (result[hole] != photo[hole]).any(axis=-1).mean() < 0.5:
        return SelfTest(seconds, "the hole was not repainted")
    return SelfTest(seconds)
