"""Properties of filling any hole of any picture with patches, in native code and without it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from retouch.errors import InputError
from retouch.images.patch_fill import SIDE, patch_fill

pytestmark = pytest.mark.filterwarnings("ignore:retouch was installed without its native code")


@st.composite
def holes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    """A hole of a few boxes and specks, and what may be copied."""
    sides = st.one_of(st.integers(1, 60), st.integers(1, 150))
    height, width = draw(sides), draw(sides)
    inside = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        inside[draw(spans(height)), draw(spans(width))] = True
    if draw(st.booleans()):
        random = np.random.default_rng(draw(st.integers(0, 1000)))
        inside |= random.random(inside.shape) < 0.005
    source = None
    if draw(st.booleans()):
        source = np.zeros_like(inside)
        source[draw(spans(height)), draw(spans(width))] = True
    return inside, source


def spans(length: int) -> st.SearchStrategy[slice]:
    ends = st.integers(0, length)
    return st.tuples(ends, ends).map(lambda pair: slice(min(pair), max(pair)))


@pytest.mark.parametrize("method", ["native", "numpy"])
@settings(max_examples=40, deadline=None)
@given(hole=holes(), seed=st.integers(0, 2**32 - 1), few_colours=st.booleans())
def test_a_fill_changes_only_the_hole(method: str, hole: Any, seed: int, few_colours: bool) -> None:
    inside, source = hole
    pixels = np.random.default_rng(seed).integers(0, 256, (*inside.shape, 3), dtype=np.uint8)
    if few_colours:
        pixels = pixels // 128 * 255
    before = pixels.copy()
    with pytest.MonkeyPatch.context() as patched:
        if method == "numpy":
            for name in ("retouch.images._patch_fill", "patchmatch"):
                patched.setitem(sys.modules, name, None)
        try:
            filled = patch_fill(pixels, inside, source=source, seed=seed)
        except InputError:
            assert inside.any() and not has_patch(~inside if source is None else ~inside & source)
            return
        again = patch_fill(pixels, inside, source=source, seed=seed)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(filled[~inside], before[~inside])
    np.testing.assert_array_equal(filled, again)
    assert filled.dtype == np.uint8 and filled.shape == before.shape


def has_patch(usable: np.ndarray) -> bool:
    if min(usable.shape) < SIDE:
        return False
    return bool(np.lib.stride_tricks.sliding_window_view(usable, (SIDE, SIDE)).all(axis=(2, 3)).any())
