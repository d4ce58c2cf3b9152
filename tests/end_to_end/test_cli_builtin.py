"""The command line without a model named: the built-in checkpoint, offline, and the notice about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import answered, done, read, refused, retouch, write_mask, write_photo

from retouch.checkpoints.profile import Profile
from retouch.checkpoints.shipped import shipped_folder
from retouch.editing.models import ERASER_NAMES, MODELS

ONE = ("--steps", 1, "--seed", 0, "--device", "cpu")


@pytest.fixture(autouse=True)
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    yield write_photo(Path("photo.png")), write_mask(Path("mask.png"))
    assert hub.requests == []


def test_inpaint_with_nothing_named(pixels: Any) -> None:
    photo, hole = pixels
    result = done("inpaint", "photo.png", "mask.png", "a red apple", "-o", "out.png", *ONE)
    (line,) = result.stderr.splitlines()
    assert "built-in" in line and "--model" in line and "model=" not in line
    assert "retouch models pull sd15-inpaint" in line and "retouch models show builtin" in line
    out = read("out.png")
    assert (out != photo).any(axis=-1)[hole].mean() > 0.9 and (out[0] == photo[0]).all()


@pytest.mark.parametrize(
    "words", [("erase", "photo.png", "mask.png"), ("outpaint", "photo.png", "--left", 8)], ids=lambda w: w[0]
)
def test_the_other_verbs_use_it_if_it_is_named(words: tuple[Any, ...]) -> None:
    result = done(*words, "-o", "out.png", "--json", *ONE, "-m", "builtin")
    assert json.loads(result.stdout)["settings"]["model"] == "builtin" and result.stderr == ""


def test_outpaint_with_a_prompt_paints_with_it() -> None:
    result = done("outpaint", "photo.png", "a tree", "--left", 8, "-o", "out.png", "--json", *ONE)
    assert json.loads(result.stdout)["settings"]["model"] == "builtin"
    assert result.stderr.count("No model is named") == 1


def test_its_name_says_nothing() -> None:
    result = done("inpaint", "photo.png", "mask.png", "cat", "-m", "builtin-regular", "-o", "out.png", *ONE)
    assert result.stderr == ""
    assert f"--model {'builtin-regular'}" in answered("info", "out.png")["command"]


def test_an_unknown_thing_is_warned_of_in_a_line() -> None:
    words = ("inpaint", "photo.png", "mask.png", "a kittn", "-m", "builtin", "-o", "out.png")
    (line,) = done(*words, *ONE).stderr.splitlines()
    assert line.startswith("warning: 'a kittn' names nothing") and "near: cat" in line
    assert "sd15-inpaint" in line


def test_compare_with_nothing_named() -> None:
    result = done("compare", "photo.png", "24,16,56,48", "a cat", "--set", "steps=1", "--device", "cpu")
    assert "built-in" in result.stderr and "| builtin | a cat | 0 |" in result.stdout
    result = done(
        *("compare", "photo.png", "24,16,56,48", "a cat", "--set", "steps=1", "--device", "cpu"),
        *("-m", "builtin", "-m", "builtin-regular", "-o", "both.png"),
    )
    assert result.stderr == "" and "| builtin-regular | a cat" in result.stdout


def test_a_slip_costs_no_notice() -> None:
    assert "Did you mean builtin?" in refused("inpaint", "photo.png", "mask.png", "-m", "bultin", *ONE)


def test_show_prints_names_limits_and_licence() -> None:
    text = done("models", "show", "builtin").stdout
    profile = Profile.of("builtin")
    flat = " ".join(text.split())
    for known in profile.names:
        assert known.word in flat and all(synonym in flat for synonym in known.synonyms)
    for limit in profile.limits:
        assert " ".join(limit.split()) in flat
    assert MODELS["builtin"].licence in text and str(shipped_folder()) in text and "MB" in text
    assert max(len(line) for line in text.splitlines() if "checkpoints" not in line) <= 100
    assert done("models", "show").stdout == text


def test_show_as_json() -> None:
    answer = answered("models", "show", "builtin")
    profile = Profile.of("builtin")
    assert [entry["word"] for entry in answer["names"]] == [known.word for known in profile.names]
    assert set(answer["names"][0]) == {"word", "synonyms", "related"} and answer["limits"] == profile.limits
    assert (answer["input_channels"], answer["works_at"], answer["cached"]) == (9, 128, False)
    assert answer["licence"] == MODELS["builtin"].licence and answer["bytes"] > 10e6
    assert answered("models", "show", "builtin-regular")["input_channels"] == 4


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("builtin")])
def test_show_knows_every_short_name(name: str) -> None:
    answer, text = answered("models", "show", name), done("models", "show", name).stdout
    entry = MODELS[name]
    repository = "/".join(entry.repository.split("/")[:2])  # an eraser is a file of one
    size = f"{1000 * entry.size_gb:.0f} MB" if name in ERASER_NAMES else f"{entry.size_gb:g} GB"
    assert (answer["repository"], answer["licence"], answer["note"]) == (
        repository,
        entry.licence,
        entry.note,
    )
    assert answer["cached"] is False and answer["names"] == [] and "knows" not in text
    for word in (repository, entry.licence, entry.note, size, f"pull {name}"):
        assert word in text


def test_show_what_is_cached_or_a_folder(hub: Any, tiny_sd_inpaint: Path) -> None:
    hub.add(MODELS["sd15-inpaint"].repository, tiny_sd_inpaint)
    done("models", "pull", "sd15-inpaint")
    hub.forget()
    assert answered("models", "show", "sd15-inpaint")["cached"] is True
    assert "made for inpainting" in done("models", "show", tiny_sd_inpaint).stdout
    assert "no checkpoint" in refused("models", "show", "photo.png")
    assert "builtin" in refused("models", "show", "nothing-like-it")


def test_there_is_nothing_to_pull() -> None:
    assert "comes with retouch" in refused("models", "pull", "builtin")
    text = done("models").stdout
    assert text.startswith("Built in:") and "builtin-regular" in text.split("To pull:")[0]
    assert set(answered("models")["built_in"]) == {"builtin", "builtin-regular"}


def test_info() -> None:
    facts = answered("info", "builtin-regular")
    assert facts["input_channels"] == 4 and "regular" in facts["what"] and "models show" in facts["knows"]
    assert answered("info", str(shipped_folder()))["knows"]


def test_help_and_completion_need_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom retouch.cli.app import app\nfrom retouch.cli.options import short_names\n"
        "assert ('builtin', short_names('builtin')[0][1]) in short_names('b')\n"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_doctor_paints_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from retouch.checkpoints import shipped

    assert answered("doctor", "--device", "cpu")["self-test"]["passed"] is True
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    result = retouch("doctor", "--device", "cpu", "--json")
    assert result.exit_code == 1 and "not in this installation" in result.stderr


def test_the_picture_of_a_seed_is_the_one_that_python_makes() -> None:
    import retouch as library

    done("inpaint", "photo.png", "mask.png", "a cat", "-o", "out.png", "--dtype", "float32", *ONE)
    editor = library.load("builtin", device="cpu", dtype="float32", progress=False)
    edit = editor.inpaint("photo.png", "mask.png", "a cat", steps=1, seed=0)
    np.testing.assert_array_equal(read("out.png"), np.asarray(edit.image))
