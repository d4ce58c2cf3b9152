"""`retouch erase` and `outpaint` without a model: patches of the photo, and no torch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import answered, done, read, refused, retouch, write_mask, write_photo
from PIL import Image

from retouch.cli.progress import StepBar

QUICK = ("--steps", 1, "--size", 64, "--device", "cpu", "--dtype", "float32")


@pytest.fixture(autouse=True)
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A folder to work in, with photo.png and mask.png."""
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "mask.png")
    return write_photo(tmp_path / "photo.png")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("retouch.editing.editor.load", load)


def test_only_the_hole_changes_and_nothing_is_noted(pixels: np.ndarray, no_model: None) -> None:
    result = done("erase", "photo.png", "mask.png", "-o", "out.png")
    inside, out = np.zeros((64, 80), bool), read("out.png")
    inside[15:49, 23:57] = True  # one pixel wider than the mask
    np.testing.assert_array_equal(out[~inside], pixels[~inside])
    assert (out != pixels).any(axis=-1)[read("mask.png") > 0].mean() > 0.9
    assert result.stderr == "" and "seed 0" in result.stdout and ", detail " in result.stdout


def test_outpaint_keeps_the_photo(pixels: np.ndarray, no_model: None) -> None:
    answer = answered("outpaint", "photo.png", "--aspect", "2:1", "-o", "wide.png")
    assert read("wide.png").shape == (64, 128, 3) and answer["seeds"] == [0]
    np.testing.assert_array_equal(read("wide.png")[:, 24:104], pixels)
    (detail,) = answer["details"]
    assert 0.5 < detail < 1.5


COMMANDS: dict[str, list[Any]] = {
    "erase": ["erase", "photo.png", "mask.png"],
    "erase with options": [
        *("erase", "photo.png", "24,16,56,48", "--grow", 2.5, "--feather", 3, "--seed", 4, "--variations", 2),
    ],
    "erase by telea": ["erase", "photo.png", "mask.png", "--fill", "telea", "--grow", 0],
    "erase inverted": ["erase", "photo.png", "keep.png", "--invert"],
    "erase from a box": ["erase", "photo.png", "mask.png", "--source", "0,0,80,16"],
    "erase from a file": ["erase", "photo.png", "mask.png", "--source", "my source.png"],
    "outpaint": ["outpaint", "photo.png", "--left", 9, "--bottom", 5, "--seed", 2],
    "outpaint from a box": ["outpaint", "photo.png", "--aspect", "2:1", "--source", "40,0,80,64"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_info_gives_the_command_that_makes_the_picture_again(case: str, no_model: None) -> None:
    Image.open("mask.png").point(lambda level: 255 - level).save("keep.png")
    write_mask(Path("my source.png"), box=(0, 0, 80, 14))
    done(*COMMANDS[case], "-o", "first.png")
    last = "first-2.png" if "--variations" in COMMANDS[case] else "first.png"
    command = shlex.split(answered("info", last)["command"])
    assert command[:3] == ["retouch", COMMANDS[case][0], "photo.png"]
    done(*command[1:], "-o", "again.png")
    np.testing.assert_array_equal(read("again.png"), read(last))
    if "--source" in COMMANDS[case]:
        assert command[command.index("--source") + 1] == COMMANDS[case][-1]
        done(*COMMANDS[case][:-2], "-o", "anything.png")
        assert (read("anything.png") != read(last)).any()


def test_a_model_that_is_named_paints(tiny_sd: Path) -> None:
    erase = ("erase", "photo.png", "mask.png", *QUICK, "--overwrite")
    assert answered(*erase, "--model", tiny_sd)["settings"]["model"] == str(tiny_sd)
    assert answered(*erase, RETOUCH_MODEL=str(tiny_sd))["settings"]["model"] == str(tiny_sd)
    wide = ("outpaint", "photo.png", "--left", 8, *QUICK, "--overwrite")
    assert answered(*wide, RETOUCH_MODEL=str(tiny_sd))["settings"]["model"] == str(tiny_sd)
    assert "--source" in refused(*erase, "--model", tiny_sd, "--source", "0,0,80,16")


def test_an_empty_name_is_none(no_model: None) -> None:
    for more, environment in ((["--model", ""], {}), ([], {"RETOUCH_MODEL": ""})):
        answer = answered("erase", "photo.png", "mask.png", "--overwrite", *more, **environment)
        assert answer["settings"]["model"] == "patches"


def test_a_speed_of_the_environment_is_for_models(no_model: None) -> None:
    erase = ("erase", "photo.png", "mask.png", "--overwrite")
    assert "speed" not in answered(*erase, RETOUCH_SPEED="fast")["settings"]
    assert answered("outpaint", "photo.png", "--left", 8, RETOUCH_SPEED="balanced")["width"] == 88
    assert refused(*erase, "--speed", "fast").startswith("error: --speed fast")
    assert refused(*erase, "--speed", "fast", RETOUCH_SPEED="exact").startswith("error: --speed fast")


REFUSED: dict[str, tuple[list[Any], str]] = {
    "gif": (["--gif", "steps.gif"], "--gif"),
    "steps": (["--steps", 3], "--steps 3"),
    "strength": (["--strength", 0.5], "--strength 0.5"),
    "negative": (["--negative", "a cat"], "--negative 'a cat'"),
    "guidance": (["--guidance", 2], "--guidance 2"),
    "scheduler": (["--scheduler", "ddim"], "--scheduler ddim"),
    "context": (["--context", "20%"], "--context"),
    "size": (["--size", 64], "--size 64"),
    "join": (["--join", "poisson"], "--join poisson"),
    "int8": (["--int8"], "--int8"),
    "matte": (["--matte"], "--matte"),
    "variant": (["--variant", "fp16"], "--variant"),
    "pickled": (["--pickled"], "--pickled"),
    "fill": (["--fill", "original"], "--fill original"),
    "source beside telea": (["--fill", "telea", "--source", "0,0,9,9"], "--source"),
    "source that is missing": (["--source", "nothere.png"], "--source"),
    "source without a patch": (["--source", "0,0,5,5"], "9x9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_a_model_can_do_is_refused(case: str, no_model: None) -> None:
    words, flag = REFUSED[case]
    line = refused("erase", "photo.png", "mask.png", *words)
    assert flag in line and "=" not in line.replace("fill='telea'", "")
    assert sorted(os.listdir()) == ["mask.png", "photo.png"]


def test_ctrl_c_leaves_nothing(no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: StepBar, update: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StepBar, "update", update)
    result = retouch("erase", "photo.png", "mask.png", "-o", "out.png")
    assert (result.exit_code, result.stdout) == (130, "") and result.stderr.startswith("stopped")
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    "words", [["erase", "photo.png", "mask.png"], ["outpaint", "photo.png", "--left", "8"]]
)
def test_torch_is_not_imported(words: list[str]) -> None:
    code = (
        f"import sys\nfrom retouch.cli.app import app\ntry: app({words!r})\n"
        "except SystemExit as leaving: assert not leaving.code\n"
        "print('heavy:', *sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RETOUCH_")}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "heavy:" and found.stderr == ""


def test_the_text_of_the_file_is_what_other_programs_read() -> None:
    done("erase", "photo.png", "mask.png", "-o", "out.png")
    with Image.open("out.png") as saved:
        text = saved.text  # type: ignore[attr-defined]
    assert text["parameters"].splitlines()[1].startswith("Seed: 0, Size: ")
    settings = json.loads(text["retouch"])
    assert settings["fill"] == "patches" and settings["photo"] == "photo.png" and "source" not in settings


def test_help_says_what_needs_no_model() -> None:
    for name in ("erase", "outpaint"):
        text = " ".join(done(name, "--help").stdout.replace("│", " ").split())
        assert "patches of the photo" in text and "--source" in text
