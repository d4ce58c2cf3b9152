"""The forms of erasers' files, each tried on a tiny file that paints the mean colour of what is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import tiny_onnx
from tiny_onnx import tiny_eraser

from retouch.checkpoints.onnx_files import open_onnx
from retouch.editing.networks import SIDE, Network, in_square, network_of
from retouch.errors import CheckpointError
from retouch.images.patch_fill import Stopped

FORMS = get_args(tiny_onnx.Form)


def network(tmp_path: Path, form: Any, side: int = 64) -> Network:
    path = tiny_eraser(tmp_path / f"{form}.onnx", form, side)
    return network_of(open_onnx(path), path.name)


def split() -> tuple[np.ndarray, np.ndarray]:
    """A crop whose left half is red and right half blue, and a hole across the middle."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (200, 20, 40), (0, 60, 240)
    hole = np.zeros((64, 64), bool)
    hole[24:40, 24:40] = True
    return pixels, hole


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gets_what_it_expects(tmp_path: Path, form: str) -> None:
    pixels, hole = split()
    pixels[hole] = 255  # what is erased must not count
    told: list[tuple[int, int]] = []
    painted = network(tmp_path, form).paint(pixels, hole, 0, lambda *done: told.append(done))
    assert painted.dtype == np.uint8 and told == [(0, 1), (1, 1)]
    np.testing.assert_allclose(painted[28:36, 28:36].reshape(-1, 3), [[100, 40, 140]] * 64, atol=2)
    np.testing.assert_array_equal(painted[~hole], pixels[~hole])


@pytest.mark.parametrize("level", [0, 1, 3, 255])
@pytest.mark.parametrize("form", ["lama", "lama255"])
def test_either_scale_is_recognised_at_any_brightness(tmp_path: Path, form: str, level: int) -> None:
    pixels, hole = np.full((64, 64, 3), level, np.uint8), split()[1]
    painted = network(tmp_path, form).paint(pixels, hole, 0, lambda *done: True)
    np.testing.assert_allclose(painted, level, atol=1)


def test_the_side_is_the_files_or_the_usual_one(tmp_path: Path) -> None:
    assert [network(tmp_path, form, 96).side for form in ("lama", "generator")] == [96, 96]
    assert network(tmp_path, "pipeline").side == SIDE


def test_a_crop_of_any_size_and_aspect(tmp_path: Path) -> None:
    for height, width in ((64, 64), (20, 90), (300, 150), (65, 64)):
        pixels = np.full((height, width, 3), (90, 120, 30), np.uint8)
        hole = np.zeros((height, width), bool)
        hole[5:15, 5:15], pixels[5:15, 5:15] = True, 255
        painted = network(tmp_path, "lama").paint(pixels, hole, 0, lambda *done: True)
        assert painted.shape == pixels.shape
        np.testing.assert_allclose(painted[hole], [[90, 120, 30]] * hole.sum(), atol=2)


def test_a_pixel_that_the_hole_touches_is_not_known() -> None:
    hole = np.zeros((100, 100), bool)
    hole[50, 50] = True
    _, keep, _ = in_square(np.zeros((100, 100, 3), np.uint8), hole, 10)
    assert keep.sum() == 99 and keep[5, 5] == 0


def test_a_hole_at_the_crops_edge_does_not_reach_the_squares(tmp_path: Path) -> None:
    pixels, hole = split()
    hole[:, :10] = hole[-1] = True
    pixels[hole] = 255
    for form in ("pipeline", "lama"):
        painted = network(tmp_path, form).paint(pixels, hole, 0, lambda *done: True)
        assert painted.shape == pixels.shape and painted[hole].max() < 255


def test_false_stops_before_the_network_runs(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        network(tmp_path, "lama").paint(*split(), 0, lambda *done: False)


def test_a_file_of_another_form_is_refused_with_its_inputs() -> None:
    picture = SimpleNamespace(name="x", type="tensor(float)", shape=[1, 3, 512, 512])
    words = SimpleNamespace(name="ids", type="tensor(int64)", shape=[1, 77])
    small = SimpleNamespace(name="mask", type="tensor(float)", shape=[1, 1, 256, 256])
    for inputs in ([picture], [picture, words], [picture, small], []):
        session = SimpleNamespace(get_inputs=lambda inputs=inputs: inputs, get_outputs=lambda: [picture])
        with pytest.raises(
            CheckpointError, match=r"upscaler.onnx is no eraser of a known form.*MI-GAN.*LaMa"
        ):
            network_of(session, "upscaler.onnx")
