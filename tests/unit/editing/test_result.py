"""The result of an edit, and that its file holds everything to repeat it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import retouch
from retouch.editing import verbs
from retouch.editing.editor import Editor
from retouch.editing.options import Options

PHOTO = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
HOLE = (40, 40, 60, 60)
FAST: dict[str, Any] = {"steps": 2, "size": 64}


@pytest.fixture(scope="module")
def editor(tiny_sd: Path) -> Editor:
    return retouch.load(tiny_sd, device="cpu", dtype="float32", progress=False)


@pytest.fixture(scope="module")
def edit(editor: Editor) -> retouch.Edit:
    return editor.inpaint(
        PHOTO,
        HOLE,
        "a cat,\nhighly detailed",
        negative_prompt="bench: ä",
        scheduler="DPM++ 2M Karras",
        seed=7,
        variations=2,
        strength=0.75,
        **FAST,
    )


def test_its_parts(edit: retouch.Edit) -> None:
    assert edit.image is edit.images[0] and len(edit.images) == len(edit.seams) == 2
    assert (edit.seed, edit.seeds) == (7, [7, 8])
    assert edit.seam == edit.seams[0] > 0 and edit.coverage == pytest.approx(400 / 13000)
    left, top, right, bottom = edit.crop
    assert left < 40 and top < 40 and right > 60 and bottom > 60 and edit.crop == edit.crops[0].box
    assert edit.mask.mode == "L" and edit.mask.getbbox() == HOLE
    assert set(edit.timings) == {"prepare", "paint", "join", "finish"} and min(edit.timings.values()) > 0
    assert edit.recording is None


def test_repr_says_what_matters(edit: retouch.Edit) -> None:
    assert re.fullmatch(
        r"Edit\(2 x 130x100 RGB, seed 7, 3\.1 % repainted in 1 crop, seam \d\.\d\d, \d+\.\d s\)", repr(edit)
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "I;16", "I", "F", "1", "CMYK"])
def test_notebooks_show_it(editor: Editor, mode: str) -> None:
    photo = Image.fromarray(PHOTO).convert("L" if mode in ("I;16", "I", "F") else mode.replace("PA", "P"))
    if mode in ("I;16", "I"):
        photo = Image.fromarray(np.asarray(photo).astype("u2" if mode == "I;16" else "i4") * 257)
    shown = editor.inpaint(photo.convert(mode), HOLE, **{**FAST, "steps": 1})
    with Image.open(io.BytesIO(shown._repr_png_())) as picture:
        picture.load()
    assert picture.size == (130, 100) and picture.mode in ("RGB", "RGBA")
    assert np.asarray(picture.convert("L"))[80:].mean() == pytest.approx(PHOTO[80:].mean(), abs=40)


def test_a_pngs_text_is_read_by_others_and_repeats_the_edit(
    editor: Editor, edit: retouch.Edit, tmp_path: Path
) -> None:
    path = edit.save(tmp_path / "second.png", 1)
    with Image.open(path) as saved:
        saved.load()
        text = saved.text
    np.testing.assert_array_equal(np.asarray(saved), np.asarray(edit.images[1]))
    prompt, negative, settings = re.fullmatch(
        r"(.*)\nNegative prompt: (.*)\n(Steps: .*)", text["parameters"], re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert (prompt, negative) == ("a cat,\nhighly detailed", "bench: ä")
    pairs = dict(pair.split(": ", 1) for pair in settings.split(", "))
    assert pairs["Steps"] == "2" and pairs["Seed"] == "8" and pairs["CFG scale"] == "7.5"
    assert pairs["Sampler"] == "DPM++ 2M Karras" and pairs["Denoising strength"] == "0.75"
    assert re.fullmatch(r"\d+x\d+", pairs["Size"]) and pairs["Model"] == "tiny_sd"
    assert pairs["Version"].startswith("retouch ")

    found = json.loads(text["retouch"])
    assert found["verb"] == "inpaint" and found["seed"] == 8 and found["dtype"] == "float32"
    options = {name: found[name] for name in Options.__dataclass_fields__ if name in found}
    again = editor.inpaint(PHOTO, HOLE, **{**options, "variations": 1})
    np.testing.assert_array_equal(np.asarray(again.image), np.asarray(saved))


def test_an_edit_without_much_to_say(editor: Editor) -> None:
    plain = editor.erase(PHOTO, HOLE, **{**FAST, "steps": 1}, seed=0)
    assert plain.text()["parameters"].startswith("\nNegative prompt: object, thing")
    assert "Sampler" not in plain.text()["parameters"]
    assert plain.settings["verb"] == "erase" and plain.settings["seed"] == 0, "0 is a seed as any other"


def test_seeds_that_were_not_given_differ_and_are_told(editor: Editor) -> None:
    seeds = [editor.inpaint(PHOTO, HOLE, **{**FAST, "steps": 1}).seed for _ in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("record", [True, "own"])
def test_a_recording_is_of_one_crop_and_variation(editor: Editor, record: Any) -> None:
    own = retouch.Recording()
    holes = [(5, 5, 10, 10), (120, 90, 125, 95)]
    recorded = editor.inpaint(
        PHOTO, holes, **FAST, variations=2, scheduler="ddim", record=own if record == "own" else record
    )
    assert isinstance(recorded.recording, retouch.Recording)
    assert (recorded.recording is own) == (record == "own")
    assert [frame.step for frame in recorded.recording.frames] == [1, 2]
    assert recorded.recording.frames[0].image.size == (recorded.crops[0].width, recorded.crops[0].height)


class TestVerbs:
    @pytest.fixture(autouse=True)
    def forget(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(verbs, "_kept", None)
        yield

    def test_the_model_stays_loaded(self, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[Any] = []
        real = retouch.load

        def load(name: Any, **options: Any) -> Editor:
            loaded.append((name, options))
            return real(name, progress=False, **options)

        monkeypatch.setattr("retouch.editing.editor.load", load)
        place = {"device": "cpu", "dtype": "float32"}
        first = retouch.inpaint(PHOTO, HOLE, "a cat", model=tiny_sd, seed=1, **place, **FAST)
        again = retouch.inpaint(PHOTO, HOLE, "a cat", model=str(tiny_sd), seed=1, **place, **FAST)
        assert len(loaded) == 1
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
        monkeypatch.setenv("RETOUCH_MODEL", str(tiny_sd))
        assert retouch.erase(PHOTO, HOLE, **place, **FAST).settings["verb"] == "erase"
        assert retouch.outpaint(PHOTO, left=8, **place, **FAST).image.size == (138, 100)
        assert len(loaded) == 1
        retouch.inpaint(PHOTO, HOLE, model=tiny_sd, device="cpu", dtype="bfloat16", **FAST)
        assert len(loaded) == 2

    def test_an_editor_is_used_as_it_is(self, editor: Editor) -> None:
        assert retouch.inpaint(PHOTO, HOLE, model=editor, **FAST).image.size == (130, 100)
        assert verbs._kept is None

    def test_without_a_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RETOUCH_MODEL", raising=False)
        settings = retouch.inpaint(PHOTO, HOLE, **{**FAST, "steps": 1}).settings
        assert settings["model"] == "builtin"


class TestOutpaint:
    @pytest.mark.parametrize(
        ("given", "size", "margins"),
        [
            ({"left": 7}, (137, 100), [7, 0, 0, 0]),
            ({"left": 1, "top": 2, "right": 3, "bottom": 4}, (134, 106), [1, 2, 3, 4]),
            ({"aspect": "16:9"}, (178, 100), [24, 0, 24, 0]),
            ({"aspect": "1:1"}, (130, 130), [0, 15, 0, 15]),
            ({"aspect": 0.5}, (130, 260), [0, 80, 0, 80]),
        ],
    )
    def test_sizes(self, editor: Editor, given: Any, size: Any, margins: Any) -> None:
        edit = editor.outpaint(PHOTO, "a park", **given, **{**FAST, "steps": 1})
        assert edit.image.size == size and edit.settings["margins"] == margins
        left, top, _, _ = margins
        kept = np.asarray(edit.image)[top : top + 100, left : left + 130]
        feather = int(max(2, 0.02 * max(edit.crops[0].size))) + 1
        np.testing.assert_array_equal(
            kept[feather:-feather, feather:-feather], PHOTO[feather:-feather, feather:-feather]
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "nothing to add"),
            ({"aspect": "13:10"}, "nothing to add"),
            ({"left": -3}, "whole pixels of 0 or more"),
            ({"left": 2.5}, "whole pixels of 0 or more"),
            ({"left": 3, "aspect": "1:1"}, "Give one of them"),
            ({"aspect": "wide"}, "aspect='wide' is not understood"),
            ({"aspect": "16:0"}, "is not understood"),
            ({"aspect": "1:2:3"}, "is not understood"),
            ({"aspect": [16, 9]}, "is not understood"),
            ({"aspect": 1000}, "is not understood"),
            ({"left": 10**6, "top": 10**6}, r"pixels. At most .* are accepted"),
            ({"left": 5, "invert": True}, "invert=True has no meaning in outpaint"),
        ],
    )
    def test_refusals(self, editor: Editor, given: Any, message: str) -> None:
        with pytest.raises(retouch.InputError, match=message):
            editor.outpaint(PHOTO, **given)


def test_the_photo_and_the_options_are_left_alone(editor: Editor) -> None:
    photo, mask = Image.fromarray(PHOTO), np.zeros((100, 130), np.uint8)
    mask[40:60, 40:60] = 250
    before, given = mask.copy(), {"grow": 3, **FAST}
    editor.inpaint(photo, mask, **given)
    np.testing.assert_array_equal(np.asarray(photo), PHOTO)
    np.testing.assert_array_equal(mask, before)
    assert given == {"grow": 3, **FAST}
