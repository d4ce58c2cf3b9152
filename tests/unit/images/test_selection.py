from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from retouch.errors import InputError
from retouch.images.selection import ellipse, object_in, of_color, transparent


def test_an_ellipse_touches_the_sides_of_its_box() -> None:
    inside = ellipse((10, 20, 50, 40), (80, 60))
    assert inside.shape == (60, 80)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == (10, 50, 20, 40)
    assert inside.sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)
    assert inside[30, 30] and not inside[20, 10]
    np.testing.assert_array_equal(inside[20:40], inside[20:40][::-1])
    np.testing.assert_array_equal(inside[:, 10:50], inside[:, 10:50][:, ::-1])


def test_an_ellipse_may_reach_over_the_edge() -> None:
    assert ellipse((-20, -20, 20, 20), (30, 30)).sum() == pytest.approx(np.pi * 20 * 20 / 4, rel=0.03)


def test_a_box_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(50, 20, 10, 40\).*left < right.*80x60"):
        ellipse((50, 20, 10, 40), (80, 60))


def test_a_colour_takes_in_its_shades() -> None:
    pixels = np.array([[[200, 30, 30], [231, 30, 30], [233, 30, 30], [200, 30, 63]]], np.uint8)
    assert of_color(pixels, "#c81e1e").tolist() == [[True, True, False, False]]
    assert of_color(pixels, "rgb(200, 30, 30)", 0).tolist() == [[True, False, False, False]]
    assert of_color(pixels, "#c81e1e", 255).all()
    # 250 + 32 would wrap around in 8 bits.
    assert of_color(np.full((1, 1, 3), 255, np.uint8), "#fafafa").all()
    assert not of_color(np.zeros((1, 1, 3), np.uint8), "#fafafa").any()


@pytest.mark.parametrize(("color", "tolerance"), [("reddish", 32), ("red", -1), ("red", 256), ("", 32)])
def test_what_is_no_colour_is_refused(color: str, tolerance: float) -> None:
    with pytest.raises(InputError, match=r"color=|tolerance="):
        of_color(np.zeros((2, 2, 3), np.uint8), color, tolerance)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_the_hole(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (9, 9, 9, 255))
    image.paste((0, 0, 0, 0), (1, 0, 3, 2))
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((1, 0))
    else:
        image = image.convert(mode)
    assert transparent(image).tolist() == [[0, 1, 1, 0]] * 2


def test_half_transparent_is_half_marked_and_opaque_pictures_are_refused() -> None:
    assert transparent(Image.new("LA", (1, 1), (0, 51)))[0, 0] == pytest.approx(0.8)
    with pytest.raises(InputError, match=r"mode RGB.*no alpha"):
        transparent(Image.new("RGB", (2, 2)))


def scene(width: int = 200, height: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Return a red disc on a green meadow, both noisy, and the disc's pixels."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    canvas, truth = Image.new("RGB", (width, height), (60, 140, 60)), Image.new("L", (width, height))
    for picture, fill in ((canvas, (190, 50, 60)), (truth, 255)):
        ImageDraw.Draw(picture).ellipse((70, 50, 130, 110), fill=fill)
    pixels = np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)
    return pixels, np.asarray(truth) > 0


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_the_object_in_the_box_is_found_and_found_again() -> None:
    pixels, truth = scene()
    found = object_in(pixels, (55, 35, 90, 90))
    assert overlap(found, truth) > 0.95
    np.testing.assert_array_equal(object_in(pixels, (55, 35, 90, 90)), found)


def test_a_large_photo_is_cut_at_a_bounded_size() -> None:
    pixels, truth = scene()
    large = cv2.resize(pixels, (2000, 1600), interpolation=cv2.INTER_LINEAR)
    found = object_in(large, (550, 350, 900, 900))
    assert overlap(found, cv2.resize(truth.astype(np.uint8), (2000, 1600)) > 0) > 0.95


def test_boxes_that_tell_nothing_are_refused() -> None:
    pixels, _ = scene()
    with pytest.raises(InputError, match="covers the whole photo"):
        object_in(pixels, (0, 0, 200, 160))
    with pytest.raises(InputError, match="200x160"):
        object_in(pixels, (300, 300, 50, 50))
    with pytest.raises(InputError, match="stands out"):
        object_in(np.full((160, 200, 3), 128, np.uint8), (50, 50, 60, 60))
