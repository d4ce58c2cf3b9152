"""`retouch inpaint`, `erase` and `outpaint` on tiny checkpoints: what is painted, said and refused."""

from __future__ import annotations

import base64
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import HOLE, answered, done, read, refused, retouch, write_mask, write_photo
from PIL import Image

from retouch.cli.progress import StepBar
from retouch.editing.editor import Editor

HOLE_TEXT = ",".join(map(str, HOLE))

# Small and quick, and the same numbers everywhere.
QUICK = ("--steps", 2, "--size", 64, "--dtype", "float32", "--device", "cpu")


@pytest.fixture
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A folder to work in, with photo.png and mask.png."""
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "mask.png")
    return write_photo(tmp_path / "photo.png")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded: errors must show before."""

    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded for a request that cannot be met")

    monkeypatch.setattr("retouch.editing.editor.load", load)


def files() -> list[str]:
    return sorted(name for name in os.listdir() if name not in ("photo.png", "mask.png"))


def test_only_the_hole_changes(pixels: np.ndarray, tiny_sd_inpaint: Path) -> None:
    result = done(
        "inpaint", "photo.png", "mask.png", "a bench", "-m", tiny_sd_inpaint, "-o", "out.png", *QUICK,
        "--feather", 0, "--seed", 5,
    )  # fmt: skip
    inside = read("mask.png") > 0
    out = read("out.png")
    np.testing.assert_array_equal(out[~inside], pixels[~inside])
    assert (out[inside] != pixels[inside]).any(axis=-1).mean() > 0.9
    assert files() == ["out.png"] and result.stderr == ""
    assert result.stdout.startswith("out.png  ") and "seed 5" in result.stdout and "20 %" in result.stdout


def test_the_default_name_is_a_new_one(pixels: np.ndarray, tiny_sd: Path) -> None:
    for _ in range(2):
        done("erase", "photo.png", "mask.png", "-m", tiny_sd, *QUICK)
    assert files() == ["photo-erase-2.png", "photo-erase.png"]


def test_a_box_is_a_mask(pixels: np.ndarray, tiny_sd_inpaint: Path) -> None:
    for mask, name in (("mask.png", "a.png"), (HOLE_TEXT, "b.png")):
        done("inpaint", "photo.png", mask, "-m", tiny_sd_inpaint, "-o", name, *QUICK, "--seed", 1)
    np.testing.assert_array_equal(read("a.png"), read("b.png"))


EVERY_OPTION: dict[str, Any] = {
    "negative": "cat",
    "steps": 3,
    "strength": 0.75,
    "guidance": 2.5,
    "seed": 11,
    "scheduler": "euler a",
    "mask_mode": "luma",
    "grow": 2.0,
    "feather": 3.0,
    "context": "70%",
    "size": 64,
    "fill": "blur",
    "join": "poisson",
    "dtype": "float32",
}


def test_every_option_arrives_and_is_in_the_answer(pixels: np.ndarray, tiny_sd: Path) -> None:
    words = [word for name, value in EVERY_OPTION.items() for word in (f"--{name.replace('_', '-')}", value)]
    answer = answered("inpaint", "photo.png", "mask.png", "a cat", "-m", tiny_sd, "-o", "out.png", *words)
    settings = answer["settings"]
    renamed = {"negative": "negative_prompt", "guidance": "guidance_scale"}
    for name, value in EVERY_OPTION.items():
        assert settings[renamed.get(name, name)] == value, name
    assert settings.items() >= {"verb": "inpaint", "prompt": "a cat", "model": str(tiny_sd)}.items()
    assert settings["photo"] == "photo.png" and settings["mask"] == "mask.png"
    assert answer["outputs"] == ["out.png"] and answer["seeds"] == [11]
    assert (answer["width"], answer["height"], answer["mode"]) == (80, 64, "RGB")
    assert answer["coverage"] == pytest.approx((32 + 4) ** 2 / (80 * 64), rel=0.05)
    assert set(answer["timings"]) >= {"load", "paint"} and len(answer["crops"]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["inpaint", "photo.png", "mask.png", 'it\'s a "cat"', "--scheduler", "euler a", "--strength", 0.6],
        ["erase", "photo.png", "24,16,56,48", "--context", 20],
        ["outpaint", "photo.png", "in the park", "--left", 16, "--bottom", 8],
    ],
    ids=lambda words: words[0],
)
def test_info_gives_the_command_that_makes_the_picture_again(
    pixels: np.ndarray, tiny_sd: Path, words: list[Any]
) -> None:
    done(*words, "-m", tiny_sd, "-o", "first.png", *QUICK, "--variations", 2)
    facts = answered("info", "first-2.png")
    command = shlex.split(facts["command"])
    assert command[:2] == ["retouch", words[0]]
    done(*command[1:], "-o", "again.png")
    np.testing.assert_array_equal(read("again.png"), read("first-2.png"))
    text = done("info", "first-2.png").stdout
    assert facts["command"] in text and "a picture made by retouch" in text


def test_variations_are_those_of_their_seeds(pixels: np.ndarray, tiny_sd: Path) -> None:
    common = ("inpaint", "photo.png", "mask.png", "a cat", "-m", tiny_sd, *QUICK)
    answer = answered(*common, "--seed", 3, "--variations", 2, "-o", "out.png")
    assert answer["outputs"] == ["out-1.png", "out-2.png"] and answer["seeds"] == [3, 4]
    done(*common, "--seed", 4, "-o", "alone.png")
    np.testing.assert_array_equal(read("out-2.png"), read("alone.png"))
    assert (read("out-1.png") != read("out-2.png")).any()
    assert Image.open("out-2.png").text["retouch"].find('"seed": 4') > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["steps.gif", "steps.webp"])
def test_the_process_as_an_animation(pixels: np.ndarray, tiny_sd_inpaint: Path, name: str) -> None:
    answer = answered(
        "inpaint", "photo.png", "mask.png", "-m", tiny_sd_inpaint, "-o", "out.png", "--gif", name,
        *QUICK, "--variations", 2, "--scheduler", "ddim",
    )  # fmt: skip
    with Image.open(name) as animation:
        assert animation.n_frames == 2  # the steps of the first variation
    assert answer["gif"] == name


def test_outpaint_keeps_the_photo_in_its_new_frame(pixels: np.ndarray, tiny_sd_inpaint: Path) -> None:
    done(
        "outpaint", "photo.png", "a park", "--aspect", "2:1", "-m", tiny_sd_inpaint, "-o", "wide.png", *QUICK,
        "--feather", 0,
    )  # fmt: skip
    wide = read("wide.png")
    assert wide.shape == (64, 128, 3)
    np.testing.assert_array_equal(wide[:, 24:104], pixels)


@pytest.mark.parametrize("margins", [[], ["--left", 8, "--aspect", "2:1"]])
def test_outpaint_wants_margins_or_an_aspect(pixels: np.ndarray, margins: list[Any], no_model: None) -> None:
    result = retouch("outpaint", "photo.png", "-m", "x/y", *margins)
    assert result.exit_code == 2 and "--aspect" in result.stderr


def test_the_mode_stays_and_a_jpeg_is_noted(pixels: np.ndarray, tiny_sd_inpaint: Path) -> None:
    grey = write_photo(Path("grey.png"), mode="L")
    done("erase", "grey.png", "mask.png", "-m", tiny_sd_inpaint, "-o", "grey-out.png", *QUICK)
    out = read("grey-out.png")
    assert out.shape == grey.shape and (out == grey).mean() > 0.3
    sizes = []
    for quality in (30, 95):
        result = done(
            "erase", "photo.png", "mask.png", "-m", tiny_sd_inpaint, "-o", "out.jpg", "--quality", quality,
            "--overwrite", *QUICK, "--seed", 1,
        )  # fmt: skip
        (line,) = result.stderr.splitlines()
        assert line.startswith("warning: JPEG compresses")
        sizes.append(Path("out.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_the_model_of_the_environment_is_used(pixels: np.ndarray, tiny_sd: Path) -> None:
    arguments = ("inpaint", "photo.png", "mask.png", "-o", "out.png", *QUICK)
    result = done(*arguments, "--json", RETOUCH_MODEL=str(tiny_sd))
    assert json.loads(result.stdout)["settings"]["model"] == str(tiny_sd) and result.stderr == ""


def test_no_file_is_replaced_unasked(pixels: np.ndarray, tiny_sd: Path, no_model: None) -> None:
    for name in ("out.png", "out-2.png", "steps.gif"):
        Path(name).write_bytes(b"mine")
    common = ("inpaint", "photo.png", "mask.png", "-m", tiny_sd)
    for extra in (["-o", "out.png"], ["-o", "out.png", "--variations", 2], ["--gif", "steps.gif"]):
        assert "--overwrite" in refused(*common, *extra)
    assert {Path(name).read_bytes() for name in files()} == {b"mine"}


def test_overwrite_replaces(pixels: np.ndarray, tiny_sd: Path) -> None:
    Path("out.png").write_bytes(b"mine")
    done("erase", "photo.png", "mask.png", "-m", tiny_sd, "-o", "out.png", "--overwrite", *QUICK)
    assert read("out.png").shape == pixels.shape


def animation() -> bytes:
    frames = [Image.new("RGB", (80, 64), colour) for colour in ("red", "blue")]
    frames[0].save("animated.gif", save_all=True, append_images=frames[1:])
    return Path("animated.gif").read_bytes()


def truncated() -> bytes:
    return Path("photo.png").read_bytes()[:4000]


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)

BAD_FILES: dict[str, Any] = {
    "truncated.png": truncated,
    "text.png": b"no picture at all",
    "empty.png": b"",
    "phone.heic": HEIC,
    "animated.gif": animation,
    "page.jpg": b"<html><body>404</body></html>",
}


@pytest.mark.parametrize(
    ("name", "role"),
    # The first frame of an animated mask is a mask.
    [
        (name, role)
        for name in BAD_FILES
        for role in ("photo", "mask")
        if (name, role) != ("animated.gif", "mask")
    ],
)
def test_bad_files_are_one_line(pixels: np.ndarray, no_model: None, name: str, role: str) -> None:
    content = BAD_FILES[name]
    Path(name).write_bytes(content() if callable(content) else content)
    inputs = (name, "mask.png") if role == "photo" else ("photo.png", name)
    line = refused("inpaint", *inputs, "-m", "org/name", "-o", "out.png")
    assert name in line or "animation" in line
    assert not Path("out.png").exists()


BAD_REQUESTS: dict[str, tuple[list[Any], str]] = {
    "missing photo": (["nothere.png", "mask.png"], "PHOTO: 'nothere.png'"),
    "folder as photo": ([".", "mask.png"], "is a folder"),
    "missing mask": (["photo.png", "nothere.png"], "MASK: 'nothere.png'"),
    "url that fails": (["http://127.0.0.1:9/photo.png", "mask.png"], "could not be downloaded"),
    "mask of another size": (["photo.png", "small.png"], "give --fit-mask to"),
    "black mask": (["photo.png", "black.png"], "use --invert if"),
    "white mask": (["photo.png", "white.png"], "Use --invert if"),
    "ambiguous mask": (["photo.png", "cutout.png"], "with --mask-mode luma or --mask-mode alpha"),
    "box outside": (["photo.png", "300,300,400,400"], "empty"),
    "box the wrong way round": (["photo.png", "50,50,10,10"], "80x64"),
    "missing folder": (["photo.png", "mask.png", "-o", "no/out.png"], "is not there"),
    "folder as output": (["photo.png", "mask.png", "-o", "."], "is a folder"),
    "no ending": (["photo.png", "mask.png", "-o", "out"], ".png"),
    "unknown ending": (["photo.png", "mask.png", "-o", "out.xyz"], ".png"),
    "text as animation": (["photo.png", "mask.png", "--gif", "out.txt"], ".gif"),
    "quality of a PNG": (
        ["photo.png", "mask.png", "-o", "out.png", "--quality", "80"],
        "error: --quality 80",
    ),
    "strength": (["photo.png", "mask.png", "--strength", "1.5"], "error: --strength 1.5"),
    "size": (["photo.png", "mask.png", "--size", "3"], "--size"),
    "seed": (["photo.png", "mask.png", "--seed", "-4"], "--seed"),
    "context": (["photo.png", "mask.png", "--context", "wide"], "--context"),
    "scheduler": (["photo.png", "mask.png", "--scheduler", "oiler"], "euler"),
    "misspelt model": (["photo.png", "mask.png", "--model", "sdxl-inpant"], "Did you mean sdxl-inpaint?"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_wrong_requests_are_one_line(pixels: np.ndarray, no_model: None, case: str) -> None:
    Image.new("L", (8, 8), 255).save("small.png")
    Image.new("L", (80, 64)).save("black.png")
    Image.new("L", (80, 64), 255).save("white.png")
    cutout = Image.merge("LA", [Image.open("mask.png"), Image.linear_gradient("L").resize((80, 64))])
    cutout.save("cutout.png")
    before = files()
    arguments, word = BAD_REQUESTS[case]
    line = refused("inpaint", *arguments, *([] if "--model" in arguments else ["-m", "org/name"]))
    assert word in line and "=True" not in line and "mask_mode" not in line
    assert files() == before


def test_a_bomb_is_refused(pixels: np.ndarray, no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "too many pixels" in refused("inpaint", "photo.png", "mask.png", "-m", "org/name")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["photo.png"],
        ["photo.png", "mask.png", "a", "b"],
        ["photo.png", "mask.png", "--fill", "paint"],
        ["photo.png", "mask.png", "--steps", "many"],
        ["photo.png", "mask.png", "--steps", "0"],
        ["photo.png", "mask.png", "--quality", "101"],
        ["photo.png", "mask.png", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_2(pixels: np.ndarray, no_model: None, arguments: list[str]) -> None:
    result = retouch("inpaint", *arguments)
    assert result.exit_code == 2 and "Usage: retouch inpaint" in result.stderr and files() == []


def test_a_missing_checkpoint_is_one_line(pixels: np.ndarray) -> None:
    line = refused("erase", "photo.png", "mask.png", "-m", "./no/such/folder")
    assert "./no/such/folder" in line and files() == []


def test_a_very_long_prompt_is_cut_with_a_warning(pixels: np.ndarray, tiny_sd_inpaint: Path) -> None:
    prompt = "a cat " * 1667
    result = done("inpaint", "photo.png", "mask.png", prompt, "-m", tiny_sd_inpaint, "-o", "out.png", *QUICK)
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: The prompt is longer") and len(line) < 1000
    assert json.loads(Image.open("out.png").text["retouch"])["prompt"] == prompt  # type: ignore[attr-defined]


def test_ctrl_c_in_the_middle_leaves_nothing(
    pixels: np.ndarray, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def update(self: StepBar, update: Any) -> None:
        steps.append(update.step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepBar, "update", update)
    arguments = ("inpaint", "photo.png", "mask.png", "-m", tiny_sd, "-o", "out.png", "--gif", "steps.gif")
    result = retouch(*arguments, *QUICK, "--steps", 5)
    assert (result.exit_code, result.stdout, steps) == (130, "", [1, 2])
    assert result.stderr.startswith("stopped") and files() == []


def test_memory_that_runs_out_is_one_line(
    pixels: np.ndarray, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def erase(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes")

    monkeypatch.setattr(Editor, "erase", erase)
    assert "--size" in refused("erase", "photo.png", "mask.png", "-m", tiny_sd)


def test_an_error_with_json_is_an_object(pixels: np.ndarray) -> None:
    result = retouch("inpaint", "photo.png", "black.png", "-m", "org/name", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "InputError"


def test_open_shows_the_first_result(
    pixels: np.ndarray, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    done(
        "erase", "photo.png", "mask.png", "-m", tiny_sd, "-o", "out.png", "--variations", 2, "--open", *QUICK
    )
    assert opened == ["out-1.png"]


def test_a_result_tells_names_but_no_folders(pixels: np.ndarray, tiny_sd: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(Path("photo.png").read_bytes()).decode()
    for photo, name in ((str(Path("photo.png").absolute()), "photo.png"), (url, "data.png")):
        answer = answered("erase", photo, HOLE_TEXT, "-m", tiny_sd, *QUICK)
        assert (answer["settings"]["photo"], answer["settings"]["mask"]) == (name, HOLE_TEXT)
