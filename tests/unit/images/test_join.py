"""Putting a painted crop back: nothing shifts, no colour is off, nothing changes beyond the feather."""

from __future__ import annotations

from typing import Any, get_args

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from retouch.images.join import Method, join
from retouch.images.mask import Mask
from retouch.images.seam import seam_score

METHODS = get_args(Method)
Y, X = np.mgrid[0:160, 0:200]
DISC = np.hypot(X - 100, Y - 80) < 35
MASK = Mask(DISC.astype(np.float32))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Slopes with a grain, away from black and white."""
    draw = np.random.default_rng(0)
    slopes = np.stack([90 + X / 3, 60 + Y / 2, 150 - X / 4], axis=-1)
    return (slopes + draw.normal(0, 4, slopes.shape)).clip(0, 255).astype(np.uint8)


def shifted(pixels: np.ndarray, by: Any) -> np.ndarray:
    return np.clip(pixels.astype(np.float32) + by, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("feather", [0, 0.5, 6, 500])
def test_the_photo_itself_comes_back_unchanged(photo: np.ndarray, method: Any, feather: float) -> None:
    np.testing.assert_array_equal(join(photo, photo, MASK, feather=feather, method=method), photo)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("feather", [0, 0.5, 1, 2.5, 6, 13])
def test_beyond_the_feather_it_is_the_photo_to_the_byte(
    photo: np.ndarray, method: Any, feather: float
) -> None:
    other = np.random.default_rng(1).integers(0, 256, photo.shape, dtype=np.uint8)
    joined = join(photo, other, MASK, feather=feather, method=method)
    beyond = distance_transform_edt(~DISC) > feather
    np.testing.assert_array_equal(joined[beyond], photo[beyond])
    assert joined.dtype == np.uint8 and (joined != photo)[DISC].any(axis=-1).mean() > 0.9


def test_plain_pastes_and_feathers() -> None:
    black, white = np.zeros((160, 200, 3), np.uint8), np.full((160, 200, 3), 255, np.uint8)
    hard = join(black, white, MASK, method="plain")
    np.testing.assert_array_equal(hard, 255 * DISC[..., None] * np.ones(3, np.uint8))
    soft = join(black, white, MASK, feather=10, method="plain")[80, :, 0].astype(int)
    assert (soft[66:135] == 255).all() and soft[145] == soft[55] == 0
    assert (np.diff(soft[:100]) >= 0).all() and np.abs(np.diff(soft)).max() < 50


@pytest.mark.parametrize("method", ["match", "poisson"])
@pytest.mark.parametrize(
    "shift",
    [(9, -7, 12), np.stack([X / 20, Y / 20 - 5, -X / 30], axis=-1)],
    ids=["everywhere alike", "from place to place"],
)
def test_a_shift_of_colour_is_taken_back(photo: np.ndarray, method: Any, shift: Any) -> None:
    painted = shifted(photo, shift)
    joined = join(photo, painted, MASK, feather=6, method=method, reach=10)
    off = cv2.blur(joined.astype(np.float32) - photo, (9, 9))[DISC]
    plain = cv2.blur(join(photo, painted, MASK, feather=6, method="plain").astype(np.float32) - photo, (9, 9))
    assert np.abs(off).max() < 2 < 0.5 * np.abs(plain).max()


def test_a_gain_and_blur_leave_a_seam_with_plain_only(photo: np.ndarray) -> None:
    painted = shifted(128 + 1.1 * (cv2.GaussianBlur(photo, (0, 0), 1) - 128.0), (6, -6, 3))
    seams = {
        method: seam_score(Image.fromarray(join(photo, painted, MASK, method=method, reach=8)), MASK)
        for method in METHODS
    }
    itself = seam_score(Image.fromarray(photo), MASK)
    assert max(abs(seams["match"] - itself), abs(seams["poisson"] - itself)) < 0.15
    assert seams["plain"] > itself + 0.6


def test_what_the_model_painted_around_the_hole_tells_nothing(photo: np.ndarray) -> None:
    """Latents that the hole touches are painted whole: red there is no shift of colour."""
    painted = photo.copy()
    painted[distance_transform_edt(~DISC) <= 8] = (255, 0, 0)
    joined = join(photo, painted, MASK, method="match", reach=10)
    assert np.abs(joined[DISC].astype(int) - (255, 0, 0)).max() <= 4
    near_sighted = join(photo, painted, MASK, method="match")
    assert np.abs(near_sighted[DISC].astype(int) - (255, 0, 0)).max() > 20


def test_outliers_on_the_ring_count_little(photo: np.ndarray) -> None:
    painted = photo.copy()
    painted[70:90, 138:150] = 255  # a detail that the model drew where the photo has none
    joined = join(photo, painted, MASK, method="match")
    assert np.abs(joined[DISC].astype(int) - photo[DISC]).mean() < 2


def test_poisson_is_the_gradients_of_the_new_and_the_edge_of_the_old() -> None:
    """By hand: constant pictures that differ by 60 and a step inside; the step stays, the 60 go."""
    photo, painted = np.full((160, 200, 3), 100, np.uint8), np.full((160, 200, 3), 160, np.uint8)
    painted[75:85, 95:105] += 30
    joined = join(photo, painted, MASK, method="poisson").astype(int)
    inner = np.zeros_like(DISC)
    inner[75:85, 95:105] = True
    assert np.abs(joined[DISC & ~inner] - 100).max() <= 1 and np.abs(joined[inner] - 130).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_large_crops_are_corrected_at_a_bounded_size(method: Any) -> None:
    photo = np.full((700, 1500, 3), 100, np.uint8)
    hole = np.zeros((700, 1500), np.float32)
    hole[200:500, 300:1200] = 1
    joined = join(photo, shifted(photo, (20, 0, -20)), Mask(hole), feather=30, method=method, reach=30)
    off = np.abs(joined.astype(int) - photo).max()
    assert off == 20 if method == "plain" else off <= 1
    assert (joined[hole == 0] == photo[hole == 0]).all() or method == "plain"


@pytest.mark.parametrize("method", METHODS)
def test_edges_of_the_hole_and_the_crop(photo: np.ndarray, method: Any) -> None:
    painted = shifted(photo, 10)
    np.testing.assert_array_equal(
        join(photo, painted, Mask(0 * MASK.levels), feather=5, method=method), photo
    )
    everything = join(photo, painted, Mask(np.ones_like(MASK.levels)), feather=5, method=method)
    np.testing.assert_array_equal(everything, painted)
    thin = np.ones_like(MASK.levels)
    thin[:, :2] = 0  # no room for a ring
    assert join(photo, painted, Mask(thin), feather=50, method=method, reach=40).shape == photo.shape
    one = np.zeros((1, 1, 3), np.uint8)
    assert join(one, one + 9, Mask(np.ones((1, 1), np.float32)), method=method)[0, 0, 0] == 9


def test_soft_masks_mix() -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    half = join(black, white, Mask(np.full((4, 4), 0.4, np.float32)), method="plain")
    assert (half == 102).all()
