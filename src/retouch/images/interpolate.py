"""Smooth interpolation: unknown values in a field of numbers from the known ones around them.

`pull_push` is a weighted average over growing neighbourhoods; `harmonic` solves Laplace's equation with the
known values as its boundary, as gradient-domain joins need.
"""

from __future__ import annotations

import cv2
import numpy as np

_NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
_SWEEPS = 40  # relaxations on each level of the pyramid; coarser levels have covered larger distances


def pull_push(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return `values` (height, width, channels) with those replaced whose `known` (height, width) is not 1.

    Where `known` is between 0 and 1, old and new are blended.
    """
    values, known = values.astype(np.float32), known.astype(np.float32)[..., None]
    if min(values.shape[:2]) == 1 and max(values.shape[:2]) == 1:
        return values
    summed, weight = _halved(values * known), _halved(known)
    coarse = np.divide(summed, weight, out=np.zeros_like(summed), where=weight > 1e-6)
    if max(coarse.shape[:2]) > 1:
        coarse = pull_push(coarse, weight[..., 0].clip(0, 1))
    return known * values + (1 - known) * _doubled(coarse, values.shape[:2])


def harmonic(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return `values` with the unknown ones replaced so that each is the mean of its four neighbours."""
    values, known = values.astype(np.float32), known > 0
    if known.all() or not known.any():
        return values
    if min(values.shape[:2]) > 8:
        weight = known.astype(np.float32)[..., None]
        summed, share = _halved(values * weight), _halved(weight)
        coarse = np.divide(summed, share, out=np.zeros_like(summed), where=share > 0)
        start = _doubled(harmonic(coarse, share[..., 0] > 0), values.shape[:2])
    else:
        start = pull_push(values, known)
    fixed = np.broadcast_to(known[..., None], values.shape)
    field = np.where(fixed, values, start)
    for _ in range(_SWEEPS):
        field = cv2.filter2D(field, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE).reshape(field.shape)
        np.copyto(field, values, where=fixed)
    return field


def _halved(field: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 blocks; an odd last row or column counts twice."""
    height, width = field.shape[:2]
    field = np.pad(field, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return (field[::2, ::2] + field[1::2, ::2] + field[::2, 1::2] + field[1::2, 1::2]) / 4


def _doubled(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Double the resolution bilinearly; the centres of the coarse cells are those of `_halved`."""
    for axis, length in ((0, shape[0]), (1, shape[1])):
        at = ((np.arange(length) + 0.5) / 2 - 0.5).clip(0, field.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, field.shape[axis] - 1)
        part = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        field = (1 - part) * np.take(field, low, axis) + part * np.take(field, high, axis)
    return field
