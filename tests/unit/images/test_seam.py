"""The seam score: 1 where the edge cannot be told from its surroundings, more where it jumps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

import retouch
from retouch.images.seam import change, seam_score


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture
def textured() -> np.ndarray:
    return np.random.default_rng(0).normal(128, 10, (60, 80, 3))


@pytest.fixture
def hole() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 25:60] = 255
    return mask


def test_texture_without_a_step_scores_one(textured: np.ndarray, hole: np.ndarray) -> None:
    assert seam_score(picture(textured), Image.fromarray(hole)) == pytest.approx(1, abs=0.1)


def test_a_step_scores_as_the_formula_says(hole: np.ndarray) -> None:
    flat = np.full((60, 80, 3), 100.0)
    flat[hole > 0] += 20
    assert seam_score(picture(flat), Image.fromarray(hole)) == pytest.approx(21)
    sloped = 2.0 * np.arange(80)[None, :, None] + np.zeros((60, 80, 3))
    sloped[hole > 0] += 10
    vertical, horizontal = (8 + 12) / 2, 10  # steps of the left and right edge, and of top and bottom
    edge = (vertical * 2 * 20 + horizontal * 2 * 35) / (2 * 20 + 2 * 35)
    score = seam_score(picture(sloped), Image.fromarray(hole))
    assert (edge + 1) / (2 + 1) < score < (edge + 1) / (0 + 1), "the slope beside the edge counts against it"


def test_more_of_a_step_scores_more(textured: np.ndarray, hole: np.ndarray) -> None:
    scores = []
    for step in (0, 10, 30, 60):
        moved = textured.copy()
        moved[hole > 0] += step
        scores.append(seam_score(picture(moved), Image.fromarray(hole)))
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


def test_a_soft_join_scores_less(textured: np.ndarray, hole: np.ndarray) -> None:
    from PIL import ImageFilter

    plain, moved = picture(textured), picture(textured + 40)
    hard = Image.composite(moved, plain, Image.fromarray(hole))
    soft = Image.composite(moved, plain, Image.fromarray(hole).filter(ImageFilter.GaussianBlur(4)))
    assert seam_score(soft, Image.fromarray(hole)) < 0.8 * seam_score(hard, Image.fromarray(hole))


def test_masks_without_an_edge_and_of_another_size(textured: np.ndarray) -> None:
    assert math.isnan(seam_score(picture(textured), Image.new("L", (80, 60), 255)))
    with pytest.raises(retouch.InputError, match=r"mask is 8x6 but image is 80x60.*resize"):
        seam_score(picture(textured), Image.new("L", (8, 6), 255))


def test_change_inside_and_outside(hole: np.ndarray) -> None:
    before = np.full((60, 80, 3), 100.0)
    after = before + 3
    after[hole > 0] = 130
    assert change(picture(before), picture(after), Image.fromarray(hole)) == (30, 3)
    nothing = Image.new("L", (80, 60), 0)
    assert change(picture(before), picture(after), nothing)[0] == 0
