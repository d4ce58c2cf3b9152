"""Control pictures that need no weights, and the guide's own function for the inpaint condition."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from guide import guide_blocks
from PIL import Image, ImageDraw
from pipeline_pairs import mask, photo

from retouch.control import canny, inpaint_condition, scribble, tile
from retouch.errors import InputError
from retouch.utils import make_inpaint_condition

MODES = ["RGB", "L", "1", "P", "CMYK", "YCbCr"]


def square(background: int = 60, inside: int = 200, size: int = 80) -> Image.Image:
    """A square of 20 to 60 on a plain ground."""
    picture = Image.new("RGB", (size, size), (background,) * 3)
    ImageDraw.Draw(picture).rectangle((20, 20, 59, 59), fill=(inside,) * 3)
    return picture


@pytest.fixture(scope="module")
def guides_own() -> Callable[..., torch.Tensor]:
    block = guide_blocks()["ControlNet"][0]
    code = re.search(r"^def make_inpaint_condition.*?return init_image$", block, re.M | re.S)
    assert code is not None and isinstance(ast.parse(code.group()).body[0], ast.FunctionDef)
    names: dict[str, Any] = {"np": np, "torch": torch}
    exec(code.group(), names)
    return names["make_inpaint_condition"]


@pytest.mark.parametrize("picture_mode", MODES)
@pytest.mark.parametrize("mask_mode", ["L", "1", "P", "RGB"])
def test_as_the_guides_own(guides_own: Any, picture_mode: str, mask_mode: str) -> None:
    image, hole = photo(1, 51, 37).convert(picture_mode), photo(2, 51, 37).convert(mask_mode)
    theirs, ours = guides_own(image, hole), make_inpaint_condition(image, hole)
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert 0.1 < float((ours == -1).float().mean()) < 0.9


def test_inpaint_condition() -> None:
    image, hole = photo(), mask((10, 18, 41, 50))
    condition = make_inpaint_condition(image, hole)
    assert condition.shape == (1, 3, 64, 64) and condition.is_contiguous()
    painted = np.asarray(hole) == 255
    values = condition[0].permute(1, 2, 0).numpy()
    assert (values[painted] == -1).all()
    assert np.array_equal(values[~painted], np.asarray(image, np.float32)[~painted] / 255)
    assert torch.equal(inpaint_condition(image, hole), condition)


def test_greys_count_from_above_one_half() -> None:
    image = Image.new("RGB", (3, 1), (255, 255, 255))
    hole = Image.fromarray(np.array([[127, 128, 129]], np.uint8))
    assert make_inpaint_condition(image, hole)[0, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32)])
def test_a_mask_of_another_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"mask_image is {size[0]}x{size[1]} but image is 64x64\. .*resize"):
        make_inpaint_condition(photo(), Image.new("L", size))


def test_a_see_through_picture_is_refused() -> None:
    see_through = Image.new("RGBA", (64, 64), (1, 2, 3, 4))
    for call in (canny, scribble, tile, lambda image: make_inpaint_condition(image, mask())):
        with pytest.raises(InputError, match="alpha channel"):
            call(see_through)


@pytest.mark.parametrize("mode", [*MODES, "LA", "I;16"])
@pytest.mark.parametrize("make", [canny, scribble, tile])
def test_any_mode_and_size(make: Callable[[Image.Image], Image.Image], mode: str) -> None:
    for size in ((51, 37), (1, 1), (3, 200)):
        picture = photo(1, *size)
        given = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257) if mode == "I;16" else None
        found = make(given or picture.convert(mode))
        assert found.mode == "RGB" and found.size == size


def test_canny_is_opencvs() -> None:
    picture = photo(3, 90, 70)
    for low, high in ((100, 200), (20, 60)):
        found = np.asarray(canny(picture, low, high))
        assert np.array_equal(found[..., 0], cv2.Canny(np.asarray(picture), low, high))
        assert (found == found[..., :1]).all()
    assert np.array_equal(np.asarray(canny(picture)), np.asarray(canny(picture, 100, 200)))


def test_canny_finds_the_edges_and_nothing_else() -> None:
    edges = np.asarray(canny(square()))[..., 0] > 0
    rows, columns = np.nonzero(edges)
    assert edges.any() and rows.min() >= 18 and rows.max() <= 61 and columns.min() >= 18
    assert not edges[24:56, 24:56].any() and edges[19:22, 40].any() and edges[40, 58:62].any()
    assert not np.asarray(canny(square(100, 110))).any()


def test_scribble_draws_along_the_dark_side_of_an_edge() -> None:
    drawn = np.asarray(scribble(square()))[..., 0]
    assert set(np.unique(drawn)) == {0, 255}
    assert (drawn[15:19, 40] == 255).all() and not drawn[:8].any() and not drawn[30:50, 30:50].any()
    counts = [np.count_nonzero(np.asarray(scribble(photo(4, 90, 70), level))) for level in (8, 32, 60)]
    assert counts[0] > counts[1] > counts[2]


def test_scribble_is_the_known_formula() -> None:
    """As other programs compute it, with their rounding to levels of 8 bits left out."""
    picture = photo(3, 90, 70)
    values = np.asarray(picture, np.float32)
    fine, coarse = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.5, 5.0))
    level = (255 - (coarse - fine).min(axis=2)).clip(0, 255).astype(np.uint8)
    theirs = np.where(2 * (255 - level.astype(int)) > 32, 255, 0)
    assert (theirs != np.asarray(scribble(picture))[..., 0]).mean() < 0.02


def test_tile_keeps_colours_and_drops_details() -> None:
    picture = photo(5, 96, 64)
    assert np.array_equal(np.asarray(tile(picture)), np.asarray(picture))
    original = np.asarray(picture, float)
    coarse = np.asarray(tile(picture, 8), float)
    assert abs(original.mean((0, 1)) - coarse.mean((0, 1))).max() < 2
    steps = [abs(np.diff(values, axis=1)).mean() for values in (original, coarse)]
    assert steps[1] < steps[0] / 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: canny(photo(), 200, 100), "low=200 and high=100 are no thresholds"),
        (lambda: canny(photo(), -1, 100), "low=-1"),
        (lambda: scribble(photo(), 0), "threshold=0 is not above 0"),
        (lambda: tile(photo(), 0.5), "factor=0.5 is not between 1"),
        (lambda: tile(photo(), 65), r"factor=65 is not between 1 .* and 64"),
        (lambda: canny(np.zeros((8, 8, 3))), "image is a ndarray"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_doors_are_light() -> None:
    """Opening a picture imports neither torch nor OpenCV, though the same module uses both."""
    program = "import sys, retouch.utils, retouch.control; print(*{'torch', 'cv2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
