"""The editing layer with the built-in checkpoint: its settings, its crops, its vocabulary."""

from __future__ import annotations

import functools
import shutil
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from refusals import refuses

import retouch
from retouch.checkpoints.profile import Profile
from retouch.editing import models, verbs
from retouch.editing.editor import Editor
from retouch.images.crops import crops
from retouch.images.mask_reading import read_photo_mask

PHOTO = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
BOX = (150, 100, 250, 160)
ONE = {"steps": 1, "seed": 0}


@pytest.fixture(scope="module")
def editor() -> Editor:
    return retouch.load("builtin", device="cpu", dtype="float32", progress=False)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_kept", None)
    monkeypatch.setattr(models, "_noticed", False)
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)


def test_nothing_named_means_built_in_and_is_said_once(
    hub: Any, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    place = {"device": "cpu", "dtype": "float32"}
    first = retouch.inpaint(PHOTO, BOX, "a red apple", **ONE, **place)
    again = retouch.inpaint(PHOTO, BOX, "a red apple", **ONE, **place)
    assert retouch.outpaint(PHOTO, "a tree", left=64, **ONE, **place).settings["model"] == "builtin"
    assert retouch.load(**place, progress=False).model == "builtin"
    assert [record.getMessage() for record in caplog.records] == [models.notice('model="sd15-inpaint"')]
    assert len(recwarn) == 0 and hub.requests == []
    assert first.settings["model"] == "builtin" and first.image.tobytes() == again.image.tobytes()
    hole = np.asarray(first.mask) > 0
    changed = (np.asarray(first.image) != PHOTO).any(axis=-1)
    assert changed[hole].mean() > 0.9 and not changed[:80].any() and not changed[:, :120].any()


def test_the_name_says_nothing(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    named = {"model": "builtin", "device": "cpu", "dtype": "float32", **ONE}
    retouch.inpaint(PHOTO, BOX, "a cat", **named)
    assert retouch.erase(PHOTO, BOX, **named).settings["model"] == "builtin"
    assert retouch.outpaint(PHOTO, left=64, **named).settings["model"] == "builtin"
    assert caplog.records == [] and editor.model == "builtin"


def test_the_regular_one_by_name() -> None:
    regular = retouch.load("builtin-regular", device="cpu", progress=False)
    assert regular.pipeline.keeps_original and regular.profile == Profile.of("builtin")
    settings = regular.erase(PHOTO, BOX, **ONE).settings
    assert settings["strength"] < 1 and settings["model"] == "builtin-regular"


@pytest.mark.parametrize(
    ("verb", "arguments"), [("inpaint", (BOX, "a cat")), ("erase", (BOX,)), ("outpaint", ("a tree",))]
)
def test_its_settings_hold_unless_others_are_given(editor: Editor, verb: str, arguments: Any) -> None:
    more = {"right": 64} if verb == "outpaint" else {}
    liked = editor.profile.defaults_of(verb)
    asked = {**ONE, "steps": 2}
    settings = getattr(editor, verb)(PHOTO, *arguments, **more, **asked).settings
    assert {name: settings[name] for name in liked} == liked | {"steps": 2}
    other = {"guidance_scale": 1.5, "context": "30%"}
    settings = getattr(editor, verb)(PHOTO, *arguments, **more, **asked, **other).settings
    assert {name: settings[name] for name in other} == other


def test_without_a_profile_the_verbs_have_their_own_settings(tiny_sd_inpaint: Path) -> None:
    plain = retouch.load(tiny_sd_inpaint, device="cpu", progress=False)
    settings = plain.inpaint(PHOTO, BOX, "a zeppelin", size=64, **ONE).settings
    assert (settings["guidance_scale"], settings["context"]) == (7.5, "50%")


def test_a_pipeline_that_was_loaded_otherwise_has_the_profile() -> None:
    pipeline = retouch.AutoPipelineForInpainting.from_pretrained("builtin")
    assert Editor(pipeline).profile == Profile.of("builtin")


def test_a_crop_is_a_square_of_the_size_of_training(editor: Editor) -> None:
    edit = editor.inpaint(PHOTO, BOX, "a cat", **ONE)
    (crop,) = edit.crops
    assert (crop.width, crop.height) == (128, 128)
    assert crop.size[0] == crop.size[1] and 0.65 < 100 / crop.size[0] < 0.75
    assert edit.crop[0] < BOX[0] and edit.crop[3] > BOX[3]


def test_a_large_hole_is_painted_once_unless_asked_for_otherwise(editor: Editor) -> None:
    steps: list[int] = []

    def listen(update: Any) -> None:
        steps.append(update.steps)

    for asked in ({}, {"one_pass": False}):
        editor.inpaint(PHOTO, (60, 20, 340, 280), "a cat", progress=listen, **ONE, **asked)
    assert steps == [1, 2, 2]


def test_square_crops_stay_in_the_photo() -> None:
    (corner,) = crops(read_photo_mask((300, 250, 390, 260), (400, 300)), 128, context="21%", square=True)
    assert corner.box == (272, 172, 400, 300)
    (whole,) = crops(read_photo_mask((0, 0, 300, 40), (400, 100)), 128, context="21%", square=True)
    assert whole.box == (0, 0, 400, 100), "there is no room for a square"
    (slim,) = crops(read_photo_mask((100, 100, 200, 110), (400, 300)), 128)
    (wide,) = crops(read_photo_mask((100, 100, 200, 110), (400, 300)), 128, square=True)
    assert slim.size[1] < slim.size[0] and wide.size[1] == wide.size[0] == slim.size[0]


def test_a_prompt_of_unknown_things_is_warned_of_with_near_names(editor: Editor) -> None:
    with pytest.warns(UserWarning, match=r"'two aples' names nothing.*near: .*apple.*sd15-inpaint") as caught:
        editor.inpaint(PHOTO, BOX, "two aples", **ONE)
    assert "models show builtin" in str(caught[0].message) and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="names nothing.*chair"):
        editor.outpaint(PHOTO, "a sofa", left=16, **ONE)
    with pytest.warns(UserWarning, match=r"lists them\)\. Name one"):  # nothing is near: none is made up
        editor.inpaint(PHOTO, BOX, "zzzz", **ONE)


@pytest.mark.parametrize("prompt", ["", "  ", "a red apple", "A KITTEN in a basket", "3d icon of a car"])
def test_what_it_knows_and_an_empty_prompt_are_not(editor: Editor, prompt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.inpaint(PHOTO, BOX, prompt, **ONE)


def test_a_folder_of_ones_own_may_have_a_vocabulary(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint("with_names", in_channels=9), tmp_path / "mine")
    (folder / "words.json").write_text('[{"word": "gizmo"}]')
    (folder / "retouch.json").write_text('{"names": "words.json", "defaults": {"all": {"size": 64}}}')
    own = retouch.load(folder, device="cpu", progress=False)
    with pytest.warns(UserWarning, match="near: gizmo"):
        edit = own.inpaint(PHOTO, BOX, "a gismo", **ONE)
    assert edit.settings["size"] == 64


@pytest.mark.parametrize("broken", ["model_index.json", "unet/config.json", "retouch.json"])
def test_an_error_about_the_checkpoint_carries_the_argument(
    tiny_checkpoint: Any, tmp_path: Path, broken: str
) -> None:
    folder = shutil.copytree(tiny_checkpoint("to_break", in_channels=9), tmp_path / "mine")
    (folder / broken).write_text("{")
    with refuses("model", broken, error=retouch.CheckpointError):
        retouch.load(folder, device="cpu", progress=False)


def test_compare_takes_names_and_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    calls: list[dict[str, Any]] = []
    real = retouch.StableDiffusionInpaintPipeline.__call__

    @functools.wraps(real)
    def call(self: Any, *args: Any, **given: Any) -> Any:
        calls.append(given)
        return real(self, *args, **given)

    monkeypatch.setattr(retouch.StableDiffusionInpaintPipeline, "__call__", call)
    mask = Image.new("L", (400, 300))
    mask.paste(255, BOX)
    photo = Image.fromarray(PHOTO)
    sheet = retouch.compare(photo, mask, "a cat", ["builtin", "builtin-regular"], num_inference_steps=1)
    assert [result.column for result in sheet.results] == ["1: builtin", "2: builtin-regular"]
    liked = Profile.of("builtin").defaults_of("inpaint")
    for made in calls:
        assert made["guidance_scale"] == liked["guidance_scale"] and made["num_inference_steps"] == 1
        assert made["padding_mask_crop"] == round(100 * float(liked["context"].rstrip("%")) / 100)
    assert [result.image.size for result in sheet.results] == [(400, 300)] * 2
    one = retouch.compare(photo, mask, "a cat", num_inference_steps=1, padding_mask_crop=5)
    assert len(one.results) == 1 and calls[-1]["padding_mask_crop"] == 5


def test_only_the_thing_is_laid_on_patches_of_the_photo(editor: Editor) -> None:
    """Around the thing, the hole has the photo's detail; settings repeat it, and the option turns it off."""
    rng = np.random.default_rng(5)
    grey = np.clip(rng.normal(120, 25, (300, 400, 1)) + rng.normal(0, 4, (300, 400, 3)), 0, 255)
    photo, box = grey.astype(np.uint8), (140, 80, 260, 200)
    edit = editor.inpaint(photo, box, "a heart", seed=1)
    assert edit.settings["matte"] is True and "matte" in edit.timings
    names = ("prompt", "seed", "steps", "guidance_scale", "context", "matte")
    given = {name: edit.settings[name] for name in names}
    assert editor.inpaint(photo, box, **given).image.tobytes() == edit.image.tobytes()
    plain = editor.inpaint(photo, box, **given | {"matte": False})

    def detail(result: retouch.Edit, thing: np.ndarray) -> float:
        part = np.asarray(result.image)[80:200, 140:260].mean(axis=-1)
        steps = np.abs(np.diff(part, axis=1))[:, :119]
        return float(steps[~thing[:, :119]].mean())

    pixels = np.asarray(plain.image)[80:200, 140:260].astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 25).astype(np.uint8)
    thing = cv2.dilate(red, np.ones((9, 9), np.uint8)) > 0
    assert 0.1 < thing.mean() < 0.9
    usual = float(np.abs(np.diff(photo.mean(axis=-1), axis=1)).mean())
    assert detail(edit, thing) > 0.7 * usual and detail(plain, thing) < 0.1 * usual
    laid = np.asarray(edit.image)[80:200, 140:260].astype(int)
    assert ((laid[..., 0] - laid[..., 1] > 25) & (red > 0)).sum() > 0.6 * red.sum(), "the heart is there"
    outside = np.asarray(edit.mask) == 0
    assert np.array_equal(np.asarray(edit.image)[outside], photo[outside])


def test_an_empty_prompt_and_erase_lay_nothing(editor: Editor) -> None:
    on, off = (editor.inpaint(PHOTO, BOX, "", matte=matte, **ONE) for matte in (True, False))
    assert on.image.tobytes() == off.image.tobytes()
    assert "matte" not in editor.erase(PHOTO, BOX, **ONE).timings


def test_variations_repeat_with_their_own_seeds(editor: Editor) -> None:
    both = editor.inpaint(PHOTO, BOX, "a cat", seed=4, steps=2, variations=2)
    second = editor.inpaint(PHOTO, BOX, "a cat", seed=5, steps=2)
    assert both.images[1].tobytes() == second.image.tobytes()
