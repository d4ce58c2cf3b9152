"""`retouch mask`: each way to mark, its edge, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import answered, done, read, refused, retouch
from PIL import Image, ImageDraw

from retouch.images.selection import ellipse, object_in

SIZE = (120, 90)


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A red disc on a noisy green meadow, with the top left corner transparent in cutout.png."""
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", SIZE, (60, 140, 60))
    ImageDraw.Draw(image).ellipse((40, 30, 79, 69), fill=(200, 40, 50))
    noise = np.random.default_rng(0).normal(0, 8, (SIZE[1], SIZE[0], 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    alpha = np.full((SIZE[1], SIZE[0], 1), 255, np.uint8)
    alpha[:20, :30] = 0
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save("cutout.png")
    return pixels


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    inside = np.zeros((SIZE[1], SIZE[0]), bool)
    inside[top:bottom, left:right] = True
    return inside


def test_boxes_add_up() -> None:
    done("mask", "photo.png", "--box", "10,20,30,40", "--box", "50,5,60,80", "-o", "m.png")
    np.testing.assert_array_equal(read("m.png"), 255 * (box(10, 20, 30, 40) | box(50, 5, 60, 80)))


def test_an_ellipse_and_a_polygon() -> None:
    done("mask", "photo.png", "--ellipse", "10,10,50,40", "-o", "e.png")
    np.testing.assert_array_equal(read("e.png") > 0, ellipse((10, 10, 50, 40), SIZE))
    done("mask", "photo.png", "--polygon", "70,10 110,10 110,50", "-o", "p.png")
    triangle = read("p.png") > 0
    assert triangle.sum() == pytest.approx(40 * 40 / 2, rel=0.1)
    assert triangle[15, 105] and not triangle[45, 75]


def test_a_colour_with_its_tolerance() -> None:
    marked = ("mask", "photo.png", "--color", "#c82832", "--tolerance")
    found = [answered(*marked, tolerance, "-o", f"{tolerance}.png") for tolerance in (5, 60)]
    disc = ellipse((40, 30, 80, 70), SIZE)
    wide = read("60.png") > 0
    assert (wide & disc).sum() / (wide | disc).sum() > 0.97
    assert 0 < found[0]["coverage"] < 0.5 * found[1]["coverage"]


def test_the_object_in_a_box(photo: np.ndarray) -> None:
    done("mask", "photo.png", "--grabcut", "30,20,60,60", "-o", "g.png")
    found = read("g.png") > 0
    np.testing.assert_array_equal(found, object_in(photo, (30, 20, 60, 60)))
    disc = ellipse((40, 30, 80, 70), SIZE)
    assert (found & disc).sum() / (found | disc).sum() > 0.95


def test_what_is_transparent() -> None:
    done("mask", "cutout.png", "--alpha", "-o", "a.png")
    np.testing.assert_array_equal(read("a.png"), 255 * box(0, 0, 30, 20))
    assert "no alpha" in refused("mask", "photo.png", "--alpha")


def test_its_edge() -> None:
    marked = ("mask", "photo.png", "--box", "40,30,80,60")
    done(*marked, "--grow", 5, "-o", "wide.png")
    wide = read("wide.png") > 0
    assert wide[30:60, 35:85].all() and not wide[:, :35].any() and not wide[25, 35]  # corners are round
    done(*marked, "--invert", "-o", "rest.png")
    np.testing.assert_array_equal(read("rest.png"), 255 * ~box(40, 30, 80, 60))
    done(*marked, "--feather", 6, "-o", "soft.png")
    soft = read("soft.png").astype(int)
    assert (soft[30:60, 40:80] == 255).all()
    row = soft[45, 30:41]
    assert (np.diff(row) >= 0).all() and len(set(row)) > 5 and row[0] == 0


def test_the_preview_shows_the_mask_in_red(photo: np.ndarray) -> None:
    done("mask", "photo.png", "--box", "40,30,80,60", "-o", "m.png", "--preview", "over.png")
    over, inside = read("over.png").astype(int), box(40, 30, 80, 60)
    np.testing.assert_array_equal(over[~inside], photo[~inside])
    assert (over[inside][:, 0] > 130).all()
    assert (over[inside][:, 2] - photo[inside][:, 2]).mean() < 0


def test_the_mask_is_one_for_inpaint_and_erase() -> None:
    from retouch.images.mask_reading import read_photo_mask

    answer = answered("mask", "photo.png", "--ellipse", "30,20,90,80")
    assert answer["output"] == "photo-mask.png" and answer["preview"] is None
    mask = read_photo_mask("photo-mask.png", SIZE)
    assert (list(mask.box), mask.coverage) == (answer["box"], answer["coverage"])
    assert answer["box"] == [30, 20, 90, 80]


def test_text_says_how_much_is_marked() -> None:
    assert done("mask", "photo.png", "--box", "0,0,60,90", "-o", "m.png").stdout == (
        "m.png  50 % of 120x90 is marked, within 0,0,60,90\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--box", "1,2,3"],
        ["--box", "1,2,3,x"],
        ["--box", "1,2,nan,4"],
        ["--ellipse", "1,2,3,1e99"],
        ["--polygon", "1,2 3"],
        ["--grabcut", "5"],
        ["--box", "1,2,3,4", "--feather", "-1"],
        ["--color", "red", "--tolerance", "300"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = retouch("mask", "photo.png", *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert sorted(os.listdir()) == ["cutout.png", "photo.png"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--box", "30,30,10,10"], "120x90"),
        (["--box", "500,500,600,600"], "empty"),
        (["--box", "0,0,120,90"], "white"),
        (["--polygon", "1,2 3,4"], "three"),
        (["--color", "reddish"], "error: --color reddish"),
        (["--box", "1,2,30,40", "--grow", "nan"], "error: --grow nan"),
        (["--grabcut", "0,0,120,90"], "whole photo"),
        (["--grabcut", "200,200,10,10"], "120x90"),
        (["--box", "1,2,30,40", "-o", "photo.png"], "--overwrite"),
        (["--box", "1,2,30,40", "-o", "m.png", "--preview", "m.png"], "same file"),
        (["--box", "1,2,30,40", "-o", "m.xyz"], ".png"),
        (["--box", "1,2,30,40", "-o", "m.png", "--preview", "over.txt"], ".png"),
    ],
)
def test_what_cannot_be_marked_is_one_line(arguments: list[Any], word: str) -> None:
    assert word in refused("mask", "photo.png", *arguments)
    assert sorted(os.listdir()) == ["cutout.png", "photo.png"]
