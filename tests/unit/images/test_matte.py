"""The matte of a painted thing, its way to the photo's resolution, and the thing on its background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from retouch.images.matte import find_matte, lay, refine_matte

SIDE = 128
Y, X = np.mgrid[:SIDE, :SIDE]
GREY = np.full((SIDE, SIDE, 3), 120, np.uint8)
HOLE = (X >= 20) & (X < 108) & (Y >= 20) & (Y < 108)
DISC = (X - 60) ** 2 + (Y - 64) ** 2 < 25**2


def painted(
    where: np.ndarray, colour: tuple[int, int, int] = (220, 40, 40), softness: float = 1
) -> np.ndarray:
    """Return grey with a thing, its edge as soft as a small model paints it."""
    alpha = cv2.GaussianBlur(where.astype(np.float32), (0, 0), softness)[..., None]
    return np.rint(alpha * np.array(colour) + (1 - alpha) * GREY).astype(np.uint8)


def overlap(matte: np.ndarray, where: np.ndarray) -> float:
    found = matte > 0.5
    return float((found & where).sum() / (found | where).sum())


@pytest.mark.parametrize("colour", [(220, 40, 40), (120, 150, 120), (20, 20, 20)])
def test_the_matte_is_the_thing(colour: tuple[int, int, int]) -> None:
    matte = find_matte(painted(DISC, colour), GREY, HOLE)
    assert matte.shape == (SIDE, SIDE) and matte.dtype == np.float32
    assert matte.min() == 0 and matte.max() == 1 and overlap(matte, DISC) > 0.93
    assert ((matte > 0) & (matte < 1)).any(), "its edge is soft"


def test_noise_and_faint_texture_are_no_thing() -> None:
    noise = np.random.default_rng(0).normal(0, 4, GREY.shape)
    noisy = np.clip(painted(DISC) + noise, 0, 255).astype(np.uint8)
    assert overlap(find_matte(noisy, GREY, HOLE), DISC) > 0.93
    assert not find_matte(np.clip(GREY + noise, 0, 255).astype(np.uint8), GREY, HOLE).any()
    assert not find_matte(GREY, GREY, HOLE).any()
    assert not find_matte(painted(DISC), GREY, np.zeros_like(HOLE)).any()


def test_specks_go_and_parts_of_size_stay() -> None:
    speck, ear = (X > 100) & (X < 104) & (Y > 100) & (Y < 104), (X > 40) & (X < 56) & (Y > 22) & (Y < 34)
    matte = find_matte(painted(DISC | speck | ear), GREY, HOLE)
    assert not matte[speck].any() and matte[ear].mean() > 0.7


def test_small_gaps_close_and_large_ones_show_the_background() -> None:
    eye = (X - 55) ** 2 + (Y - 60) ** 2 < 4**2
    slit = (X > 60) & (X < 63) & (Y > 60)
    matte = find_matte(painted(DISC & ~eye & ~slit, softness=0.3), GREY, HOLE)
    assert matte[eye].min() == 1 and matte[slit & (Y < 84)].min() == 1
    hole = (X - 60) ** 2 + (Y - 64) ** 2 < 12**2
    assert find_matte(painted(DISC & ~hole), GREY, HOLE)[64, 60] == 0, "a ring"


def test_the_matte_stays_in_the_hole() -> None:
    wide = np.ones_like(HOLE)
    assert not find_matte(painted(wide), GREY, HOLE)[~HOLE].any()


def test_a_thin_line_along_the_edge_of_the_hole_is_no_thing() -> None:
    line = HOLE & (cv2.erode(HOLE.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
    stalk = (X > 58) & (X < 62) & (Y > 25) & (Y < 45)
    matte = find_matte(painted(DISC | line | stalk, softness=0.5), GREY, HOLE)
    assert matte[line].max() == 0 and matte[stalk].mean() > 0.5, "elsewhere it is one"


def test_refining_follows_the_edges_of_the_larger_picture() -> None:
    large = 4 * SIDE
    rows, columns = np.mgrid[:large, :large]
    disc = (columns - 240) ** 2 + (rows - 256) ** 2 < 100**2
    sharp = np.where(disc[..., None], (220, 40, 40), 120).astype(np.uint8)
    small = cv2.resize(sharp, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    matte = find_matte(small, GREY, HOLE)
    refined = refine_matte(matte, small, sharp)
    assert refined.shape == (large, large) and refined.min() >= 0 and refined.max() <= 1
    enlarged = cv2.resize(matte, (large, large), interpolation=cv2.INTER_LINEAR)
    assert np.abs(refined - disc).mean() < np.abs(enlarged - disc).mean()
    assert overlap(refined, disc) > 0.98
    assert refine_matte(np.zeros_like(matte), small, sharp).max() == 0


def test_only_the_thing_is_laid_on_the_background() -> None:
    ground = np.random.default_rng(1).integers(60, 200, GREY.shape, dtype=np.uint8)
    matte = find_matte(painted(DISC), GREY, HOLE)
    laid = lay(ground, painted(DISC), matte, ~HOLE)
    assert laid.dtype == np.uint8 and np.array_equal(laid[matte == 0], ground[matte == 0])
    core = cv2.erode(DISC.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    red, green, _ = laid[core].mean(axis=0)
    assert red > green + 90
    assert np.array_equal(lay(ground, painted(DISC), np.zeros_like(matte), ~HOLE), ground)


def test_the_edge_of_a_thing_has_its_own_colours() -> None:
    """What was painted around it, here grey, does not come along as an outline."""
    white = np.full_like(GREY, 235)
    picture = painted(DISC, (220, 40, 40), softness=2)
    matte = find_matte(picture, GREY, HOLE)
    rim = (matte > 0.3) & ~(cv2.erode((matte > 0.95).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    laid = lay(white, picture, matte, ~HOLE, mixed=2)
    pasted = matte[..., None] * picture + (1 - matte[..., None]) * white
    spread = np.ptp(laid[rim].astype(float), axis=-1)
    assert spread.mean() > np.ptp(pasted[rim], axis=-1).mean() + 5


def test_a_thing_that_the_hole_cuts_off_keeps_its_colours_there() -> None:
    wide = (Y > 40) & (Y < 90)
    picture = (
        painted(wide & (X < 64), (220, 40, 40)).astype(int) + painted(wide & (X >= 64), (40, 40, 220)) - GREY
    )
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    matte, fading = find_matte(picture, GREY, HOLE), np.where(X < 24, 0.5, 1.0)
    laid = lay(GREY, picture, matte, ~HOLE, mixed=4, fading=fading)
    left, right = laid[60:70, 24].mean(axis=0), laid[60:70, 107].mean(axis=0)
    assert left[0] > left[2] + 90 and right[2] > right[0] + 90
    faded = laid[60:70, 21].mean(axis=0)
    assert 120 < faded[0] < left[0] - 20, "half of it is the background"


def test_glaring_colours_are_pulled_to_the_photos_and_others_stay() -> None:
    def chroma(pixels: np.ndarray) -> float:
        lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        return float(np.hypot(lab[..., 1], lab[..., 2])[DISC].mean())

    dull = np.random.default_rng(2).integers(90, 150, GREY.shape, dtype=np.uint8)
    vivid = dull.copy()
    vivid[:, ::2] = (250, 30, 30)
    vivid[::3] = (255, 255, 255)
    vivid[::5] = (0, 0, 0)
    glaring = painted(DISC, (255, 0, 60))
    matte = find_matte(glaring, GREY, HOLE)
    tamed, kept = (lay(ground, glaring, matte, ~HOLE) for ground in (dull, vivid))
    assert 0.6 * chroma(glaring) < chroma(tamed) < 0.9 * chroma(glaring)
    assert chroma(kept) > 0.95 * chroma(glaring)
    calm = painted(DISC, (140, 120, 110))
    apart = lay(dull, calm, find_matte(calm, GREY, HOLE), ~HOLE)[DISC].mean(axis=0) - calm[DISC].mean(axis=0)
    assert np.abs(apart).max() < 6
