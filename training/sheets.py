"""Contact sheets: many small pictures in one PNG, for a person to look at."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch


def write_sheet(path: Path, pictures: np.ndarray, columns: int, cell: int | None = None) -> None:
    """Write pictures, (n, height, width, 3) bytes, as one sheet; `cell` shrinks each to that side."""
    if cell is not None:
        pictures = np.stack([cv2.resize(p, (cell, cell), interpolation=cv2.INTER_AREA) for p in pictures])
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Convert (n, 3, height, width) floats from -1 to 1 to (n, height, width, 3) bytes."""
    return ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Convert (n, height, width, 3) bytes to (n, 3, height, width) floats from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
