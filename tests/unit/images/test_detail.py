"""The detail score: 1 for a texture that is continued, 0 for a smear."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from retouch.images.detail import detail_score
from retouch.images.fill import fill_hole
from retouch.images.mask import Mask


def texture(coarse: float = 1.5) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, (120, 160, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), coarse)
    return np.clip(128 + 40 * soft / soft.std(), 0, 255).astype(np.uint8)


def mask(left: int = 60, top: int = 40, right: int = 110, bottom: int = 80) -> Mask:
    levels = np.zeros((120, 160), np.float32)
    levels[top:bottom, left:right] = 1
    return Mask(levels)


@pytest.mark.parametrize("coarse", [0.5, 1.5, 4])
def test_a_texture_continued_scores_one(coarse: float) -> None:
    assert detail_score(texture(coarse), mask()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("fill", "most"), [("blur", 0.1), ("color", 0.02), ("telea", 0.3)])
def test_a_smear_scores_near_nothing(fill: str, most: float) -> None:
    filled = fill_hole(texture(), mask().inside, fill)  # type: ignore[arg-type]
    assert 0 <= detail_score(filled, mask()) < most


def test_noise_scores_more_than_one() -> None:
    pixels = texture(4)
    filled = fill_hole(pixels, mask().inside, "noise")
    assert detail_score(filled, mask()) > 2


def test_the_score_is_in_proportion_to_contrast() -> None:
    pixels = texture().astype(np.float32)
    half = np.where(mask().inside[..., None], 128 + (pixels - 128) / 2, pixels).astype(np.uint8)
    assert detail_score(half, mask()) == pytest.approx(detail_score(texture(), mask()) / 2, rel=0.05)


def test_the_edge_itself_does_not_count() -> None:
    """A box of one colour has an edge, but no detail."""
    pixels = texture()
    pixels[mask().inside] = (255, 0, 0)
    assert detail_score(pixels, mask()) < 0.02


def test_a_plain_photo_has_as_much_as_its_plain_fill() -> None:
    plain = np.full((120, 160, 3), 90, np.uint8)
    assert detail_score(plain, mask()) == 1
    shaded = plain + np.arange(160, dtype=np.uint8)[None, :, None] // 4
    assert detail_score(shaded, mask()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "where",
    [mask(0, 0, 0, 0), mask(0, 0, 160, 120), mask(10, 10, 13, 60), mask(2, 2, 158, 118)],
    ids=["no hole", "all hole", "a line", "a rim outside"],
)
def test_too_little_on_one_side_is_not_a_number(where: Mask) -> None:
    assert math.isnan(detail_score(texture(), where))


def test_grey_levels_count_from_half() -> None:
    levels = mask().levels
    pixels = fill_hole(texture(), levels > 0, "blur")
    assert detail_score(pixels, Mask(levels * 0.6)) == detail_score(pixels, Mask(levels))
    assert math.isnan(detail_score(pixels, Mask(levels * 0.4)))
