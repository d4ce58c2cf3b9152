"""The speed presets: their options, what overrides them, and that the photo outside the mask stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_files import peft, sides

import retouch
from retouch.editing.editor import Editor
from retouch.editing.options import Options
from retouch.editing.speed import SPEEDS
from retouch.errors import InputError
from retouch.kernels.cpu import int8

PHOTO = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
BOX = (40, 30, 80, 60)


@pytest.fixture
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Editor]:
    monkeypatch.delenv("RETOUCH_SPEED", raising=False)

    def build(checkpoint: str = "tiny_sd_inpaint") -> Editor:
        folder: Path = request.getfixturevalue(checkpoint)
        return retouch.load(folder, device="cpu", dtype="float32", progress=False)

    return build


def evaluations(editor: Editor, **options: Any) -> tuple[list[int], int, retouch.Edit]:
    """Return the rows of each evaluation of the UNet, the number of runs of its middle, and the result."""
    rows: list[int] = []
    deep: list[int] = []
    unet = editor.pipeline.unet
    handles = [
        unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]))),
        unet.mid_block.register_forward_pre_hook(lambda module, args: deep.append(1)),
    ]
    try:
        edit = editor.inpaint(PHOTO, BOX, "a cat", seed=1, **options)
    finally:
        for handle in handles:
            handle.remove()
    return rows, len(deep), edit


def test_exact_is_the_default_and_leaves_nothing_out(load: Callable[..., Editor]) -> None:
    editor = load()
    plain, exact = (evaluations(editor, steps=4, **given) for given in ({}, {"speed": "exact"}))
    assert plain[0] == exact[0] == [2] * len(plain[0]) and plain[1] == len(plain[0])
    assert np.array_equal(plain[2].image, exact[2].image)
    assert plain[2].settings["speed"] == "exact" and plain[2].settings["guidance_interval"] is None
    assert plain[2].settings["reuse_deep_features"] == 1 and plain[2].settings["scheduler"] is None


def test_the_presets_save_work_in_their_order(load: Callable[..., Editor]) -> None:
    editor = load()
    rows, deep = {}, {}
    for word in SPEEDS:
        found, deep[word], edit = evaluations(editor, speed=word)
        rows[word] = sum(found)
        assert edit.settings["speed"] == word
        settings = {name: edit.settings[name] for name in SPEEDS[word]}
        assert settings == {**SPEEDS[word], **({"int8": int8.is_available()} if word == "fast" else {})}
    assert rows["exact"] > rows["balanced"] > rows["fast"]
    assert deep["exact"] > deep["balanced"] > deep["fast"]
    assert rows["fast"] < rows["exact"] / 3 and deep["fast"] <= deep["exact"] / 10


@pytest.mark.parametrize(
    "checkpoint", ["tiny_sd", "tiny_sd_inpaint", "tiny_sdxl_inpaint", "tiny_kandinsky_whole"]
)
@pytest.mark.parametrize("word", ["balanced", "fast"])
def test_outside_the_hole_the_photo_stays(load: Callable[..., Editor], checkpoint: str, word: str) -> None:
    editor = load(checkpoint)
    for verb in ("inpaint", "erase"):
        edit = getattr(editor, verb)(PHOTO, BOX, speed=word, steps=3, seed=1, size=64, feather=0)
        outside = np.asarray(edit.mask) == 0
        assert outside.any() and (np.asarray(edit.image)[outside] == PHOTO[outside]).all()
        assert (np.asarray(edit.image) != PHOTO).any()


def test_what_is_given_counts_more_than_the_preset(load: Callable[..., Editor]) -> None:
    editor = load()
    rows, deep, edit = evaluations(
        editor, speed="fast", steps=3, scheduler="euler", guidance_interval=None, reuse_deep_features=1
    )
    assert rows == [2, 2, 2] and deep == 3
    assert edit.settings["scheduler"] == "euler" and edit.settings["steps"] == 3


def test_a_result_can_be_made_again_from_its_settings(load: Callable[..., Editor]) -> None:
    editor = load()
    edit = editor.inpaint(PHOTO, BOX, "a cat", speed="fast", seed=1, guidance_interval=(0.2, 1.0))
    told = {name: value for name, value in edit.settings.items() if name in Options.__dataclass_fields__}
    assert told.items() >= {"steps": 6, "scheduler": "dpm++ 2m trailing", "reuse_deep_features": 2}.items()
    assert np.array_equal(editor.inpaint(PHOTO, BOX, **told).image, edit.image)


def test_a_distilled_checkpoint_keeps_its_sampler(load: Callable[..., Editor]) -> None:
    editor = load()
    editor.pipeline.scheduler = retouch.LCMScheduler.from_config(editor.pipeline.scheduler.config)
    settings = editor.inpaint(PHOTO, BOX, "a cat", speed="fast", seed=1).settings
    assert settings["scheduler"] is None and settings["steps"] == Options().steps
    assert settings["reuse_deep_features"] == SPEEDS["fast"]["reuse_deep_features"]


def test_the_environment_gives_the_default(
    load: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = load()
    monkeypatch.setenv("RETOUCH_SPEED", "balanced")
    assert editor.inpaint(PHOTO, BOX, steps=2).settings["speed"] == "balanced"
    assert editor.inpaint(PHOTO, BOX, steps=2, speed="exact").settings["speed"] == "exact"
    monkeypatch.setenv("RETOUCH_SPEED", "turbo")
    with pytest.raises(
        InputError, match=r"speed='turbo' is unknown\. Accepted are exact, balanced, fast.*RETOUCH_SPEED"
    ):
        editor.inpaint(PHOTO, BOX, steps=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": "turbo"}, r"speed='turbo' is unknown\. Accepted are exact, balanced, fast.*leave it out"),
        ({"speed": 2}, r"speed=2 is unknown"),
        ({"guidance_interval": (0.9, 0.1)}, "is not an interval of noise levels"),
        ({"guidance_interval": "all"}, "Two noise levels"),
        ({"reuse_deep_features": 0}, "reuse_deep_features=0 is not a whole number of 1 or more"),
    ],
)
def test_what_is_refused(load: Callable[..., Editor], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Options.of(**options)
    with pytest.raises(InputError, match=words):
        load().inpaint(PHOTO, BOX, **options)


def test_numpys_numbers_are_understood(load: Callable[..., Editor]) -> None:
    interval = tuple(np.array([0.25, 1.0], np.float32))
    settings = load().inpaint(PHOTO, BOX, guidance_interval=interval, steps=2).settings
    assert settings["guidance_interval"] == [0.25, 1.0]
    assert torch.tensor(settings["guidance_interval"]).tolist() == [0.25, 1.0]


class TestInt8:
    """The tiny checkpoints' layers are too narrow to be rounded, so all of them are shared."""

    @pytest.fixture(autouse=True)
    def available(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(int8, "is_available", lambda: True)

    def test_the_copy_is_made_once(
        self, load: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []

        def copy_of(model: Any) -> Any:
            made.append(model)
            return int8.int8_copy(model)

        monkeypatch.setattr("retouch.pipelines.pipeline.int8_copy", copy_of)
        editor = load()
        unet = editor.pipeline.unet
        for speed in ("exact", "fast", "fast"):
            settings = editor.inpaint(PHOTO, BOX, speed=speed, steps=2).settings
            assert settings["int8"] == (speed == "fast")
        editor.inpaint(PHOTO, BOX, int8=True, steps=2)
        assert made == [unet] and editor.pipeline.unet is unet
        editor.pipeline.unet = copy.copy(unet)
        editor.inpaint(PHOTO, BOX, int8=True, steps=2)
        assert len(made) == 2

    def test_where_it_is_not_possible(self, load: Callable[..., Editor]) -> None:
        editor = load()
        editor.pipeline.load_lora_weights(dict(peft(sides(editor.pipeline))))
        assert not editor.inpaint(PHOTO, BOX, speed="fast", steps=2).settings["int8"]
        words = r"int8 was asked for, but LoRA adapters are loaded.*without adapters.*unload"
        with pytest.raises(InputError, match=words):
            editor.inpaint(PHOTO, BOX, int8=True, steps=2)

    def test_without_the_processors_help(
        self, load: Callable[..., Editor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(int8, "is_available", lambda: False)
        editor = load()
        assert not editor.inpaint(PHOTO, BOX, speed="fast", steps=2).settings["int8"]
        with pytest.raises(InputError, match="this processor, or this build of torch"):
            editor.pipeline.with_int8()
        with pytest.raises(InputError, match=r"int8='yes' is neither True nor False"):
            editor.inpaint(PHOTO, BOX, int8="yes")
