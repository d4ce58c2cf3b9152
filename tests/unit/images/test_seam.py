"""The seam score: 1 where the edge cannot be told from its surroundings, more where it jumps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

import retouch
from retouch.images.mask import Mask
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


def by_hand(pixels: np.ndarray, inside: np.ndarray) -> float:
    """The formula at the top of the module, pair by pair."""
    away = np.maximum(distance_transform_edt(inside), distance_transform_edt(~inside))
    height, width = inside.shape
    ratios = []
    for s in (1, 2, 4, 8, 16):
        across, beside = [], []
        for y, x in itertools.product(range(height - s + 1), range(width - s + 1)):
            here = slice(y, y + s), slice(x, x + s)
            for down, right in ((2 * s - 1, 0), (0, 2 * s - 1)):
                if y + down + s > height or x + right + s > width:
                    continue
                there = slice(y + down, y + down + s), slice(x + right, x + right + s)
                d = np.abs(pixels[here].mean((0, 1)) - pixels[there].mean((0, 1))).mean()
                shares = sorted((inside[here].mean(), inside[there].mean()))
                if shares == [0, 1]:
                    across.append(d)
                elif shares in ([0, 0], [1, 1]) and max(away[here].mean(), away[there].mean()) <= 4 * s:
                    beside.append(d)
        if across and beside:
            ratios.append((np.mean(across) + 1) / (np.mean(beside) + 1))
    return float(np.exp(np.mean(np.log(ratios))))


@pytest.mark.parametrize("shape", ["box", "ellipse", "half of a wide picture"])
def test_it_is_what_the_formula_says(shape: str) -> None:
    height, width = (18, 100) if "wide" in shape else (26, 34)
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    inside = {
        "box": (x > 15) & (y > 4),
        "ellipse": ((x - 16) / 10) ** 2 + ((y - 13) / 8) ** 2 < 1,
        "half of a wide picture": x >= 50,
    }[shape]
    score = seam_score(Image.fromarray(pixels), Image.fromarray(255 * inside.astype(np.uint8)))
    assert score == pytest.approx(by_hand(pixels.astype(float), inside), rel=1e-4)


@pytest.mark.parametrize("width", [6, 12, 24])
def test_a_feather_hides_no_step(width: int) -> None:
    """Wider than one scale's ring, it is seen at another."""
    flat = np.full((160, 200, 3), 100.0)
    mask = np.zeros((160, 200), np.uint8)
    mask[:, 100:] = 255
    ramp = np.clip((np.arange(200) - 100 + width / 2) / width, 0, 1)[None, :, None]
    seam = seam_score(picture(flat + 20 * ramp), Image.fromarray(mask))
    hard = seam_score(picture(flat + 20 * (ramp >= 0.5)), Image.fromarray(mask))
    assert hard == pytest.approx(21)
    assert 1.8 < seam < 0.6 * hard


def test_scales_too_coarse_for_the_mask_are_left_out() -> None:
    flat = np.full((40, 40, 3), 100.0)
    mask = np.zeros((40, 40), np.uint8)
    mask[20, 20] = 255
    flat[20, 20] += 20
    assert seam_score(picture(flat), Image.fromarray(mask)) == pytest.approx(21)


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
    assert change(picture(before), picture(after), Mask(hole / np.float32(255))) == (30, 3)
    nothing = Mask(np.zeros((60, 80), np.float32))
    assert change(picture(before), picture(after), nothing)[0] == 0
