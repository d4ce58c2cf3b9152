"""Classical fills: the content of a hole before a model sees it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.images.fill import Fill, fill_hole

Y, X = np.mgrid[0:60, 0:80]
SLOPE = np.stack([X + 60, 2 * Y + 40, 200 - X], axis=-1).astype(np.uint8)
HOLE = (np.abs(X - 40) < 15) & (np.abs(Y - 30) < 12)
SPOILT = np.where(HOLE[..., None], np.uint8(255), SLOPE)
pytestmark = pytest.mark.filterwarnings("ignore:retouch was installed without its native code")


@pytest.mark.parametrize("fill", get_args(Fill))
def test_all_but_the_hole_stays(fill: Any) -> None:
    given = SPOILT.copy()
    filled = fill_hole(given, HOLE, fill)
    np.testing.assert_array_equal(filled[~HOLE], SLOPE[~HOLE])
    np.testing.assert_array_equal(given, SPOILT)
    assert filled.dtype == np.uint8
    assert (filled[HOLE] == 255).all() == (fill == "original")


@pytest.mark.parametrize(("fill", "levels"), [("blur", 12), ("telea", 12), ("ns", 12), ("patches", 12)])
def test_the_surroundings_are_continued(fill: Any, levels: int) -> None:
    error = np.abs(fill_hole(SPOILT, HOLE, fill).astype(int) - SLOPE)[HOLE]
    assert error.mean() < levels, "the hole itself was 80 levels off"


def test_noise_has_the_surroundings_colours_and_the_seed() -> None:
    first, again, other = (fill_hole(SPOILT, HOLE, "noise", seed=seed)[HOLE] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    np.testing.assert_allclose(first.mean(0), SLOPE[~HOLE].mean(0), atol=5)
    np.testing.assert_allclose(first.std(0), SLOPE[~HOLE].std(0), rtol=0.2)


def test_patches_copy_texture_and_have_a_seed() -> None:
    photo = np.random.default_rng(0).integers(0, 256, SLOPE.shape, dtype=np.uint8)
    first, again, other = (fill_hole(photo, HOLE, "patches", seed=seed)[HOLE] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert first.std() > 3 * fill_hole(photo, HOLE, "blur")[HOLE].std()


def test_color() -> None:
    assert (fill_hole(SPOILT, HOLE, "color")[HOLE] == 127).all()
    assert (fill_hole(SPOILT, HOLE, "color", color=(1, 2, 3))[HOLE] == (1, 2, 3)).all()


def test_a_hole_that_is_everything_or_nothing() -> None:
    every = np.ones_like(HOLE)
    for fill in ("blur", "telea", "ns", "patches"):
        with pytest.raises(InputError, match=r"the hole leaves none.*fill='noise'"):
            fill_hole(SPOILT, every, fill)  # type: ignore[arg-type]
    assert fill_hole(SPOILT, every, "noise").std() > 20
    for fill in get_args(Fill):
        np.testing.assert_array_equal(fill_hole(SPOILT, ~every, fill), SPOILT)
