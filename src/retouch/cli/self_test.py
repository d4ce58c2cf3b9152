"""One inpainting with the built-in checkpoint.

It shows whether everything that an edit needs works on this device in this precision. Nothing is downloaded.
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
    """Duration of the test, and the fault if there is one."""

    seconds: float
    fault: str | None = None


def run_self_test(device: torch.device, dtype: torch.dtype) -> SelfTest:
    """Repaint a square of a small photo; the square must change and nothing else may."""
    photo = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    mask = np.zeros((_SIDE, _SIDE), bool)
    mask[40:88, 40:88] = True
    editor = load("builtin", device=device, dtype=dtype, progress=False)
    start = time.perf_counter()
    edit = editor.inpaint(photo, mask, "a red apple", steps=_STEPS, seed=0, feather=0)
    seconds = time.perf_counter() - start
    result = np.asarray(edit.image)
    if (result[~mask] != photo[~mask]).any():
        return SelfTest(seconds, "pixels outside the mask changed")
    if (result[mask] != photo[mask]).any(axis=-1).mean() < 0.5:
        return SelfTest(seconds, "the masked area was not repainted")
    return SelfTest(seconds)
