"""Networks for erasing on the command line: erase, extend, list, fetch, recognise and remove them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import answered, done, read, refused, write_mask, write_photo
from tiny_onnx import tiny_eraser

from retouch.editing.models import ERASER_NAMES, repository_of
from retouch.editing.moebius import FILES

MIGAN = ERASER_NAMES["migan"].repository


@pytest.fixture
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A folder to work in, with photo.png, mask.png and tiny.onnx."""
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "mask.png")
    tiny_eraser(tmp_path / "tiny.onnx", "lama")
    return write_photo(tmp_path / "photo.png")


def publish(hub: Any, folder: Path) -> None:
    """Put a tiny network on the hub under the address of a published one."""
    repository = repository_of(MIGAN)
    folder.mkdir()
    tiny_eraser(folder / MIGAN.removeprefix(f"{repository}/"), "pipeline")
    (folder / "other.bin").write_bytes(b"not needed")
    hub.add(repository, folder)


def test_erase_changes_the_hole_alone(pixels: np.ndarray) -> None:
    options = ("-m", "tiny.onnx", "-o", "out.png", "--grow", 0)
    answer = answered("erase", "photo.png", "mask.png", *options, RETOUCH_SPEED="fast")
    inside, out = read("mask.png") > 0, read("out.png")
    np.testing.assert_array_equal(out[~inside], pixels[~inside])
    assert out[inside].std() < pixels[inside].std() / 4
    assert answer["settings"]["model"] == "tiny.onnx" and answer["timings"]["load"] > 0
    facts = answered("info", "out.png")
    assert "--model tiny.onnx" in facts["command"]
    words = shlex.split(facts["command"])[1:]
    again = [word.replace("out.png", "photo.png") for word in words]
    done(*again, "-o", "again.png")
    np.testing.assert_array_equal(read("again.png"), out)


def test_outpaint_without_a_prompt(pixels: np.ndarray) -> None:
    done("outpaint", "photo.png", "--right", 20, "-o", "wide.png", RETOUCH_MODEL="tiny.onnx")
    assert read("wide.png").shape == (64, 100, 3)


def test_what_it_cannot_do_is_one_line(pixels: np.ndarray) -> None:
    erase = ("erase", "photo.png", "mask.png", "-m", "tiny.onnx")
    assert "reads no prompt" in refused("inpaint", "photo.png", "mask.png", "a cat", "-m", "tiny.onnx")
    assert "outpaint with a prompt" in refused(
        "outpaint", "photo.png", "a cat", "--top", 9, "-m", "tiny.onnx"
    )
    assert "--gif" in refused(*erase, "--gif", "out.gif")
    assert "--steps" in refused(*erase, "--steps", 3)
    assert "--dtype" in refused(*erase, "--dtype", "float16")
    assert "none.onnx is not there" in refused("erase", "photo.png", "mask.png", "-m", "none.onnx")
    Path("text.onnx").write_text("nothing")
    assert "cannot be opened" in refused("erase", "photo.png", "mask.png", "-m", "text.onnx")


def test_they_are_listed_with_what_they_are_good_at(hub: Any) -> None:
    erasers = answered("models")["erasers"]
    assert erasers["migan"]["licence"] == "MIT" and erasers["lama"]["licence"] == "Apache-2.0"
    text = done("models").stdout
    for name, entry in ERASER_NAMES.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert entry.licence in line and entry.note in line and len(line) <= 90
    assert hub.requests == []


def test_pull_show_use_and_remove(hub: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    facts = answered("info", "migan")
    assert "not in the cache" in facts["what"] and facts["use"] == "retouch models pull migan"
    assert hub.requests == []
    publish(hub, tmp_path / "published")
    result = done("models", "pull", "migan")
    assert "MIT" in result.stderr and repository_of(MIGAN) in result.stdout
    assert [Path(name).name for name in hub.files_sent] == ["migan_pipeline_v2.onnx"]
    hub.forget()
    facts = answered("info", "migan")
    assert facts["kind"] == "eraser" and "MI-GAN" in facts["what"] and "--model migan" in facts["use"]
    assert "MI-GAN" in done("models", "show", "migan").stdout
    assert answered("info", MIGAN)["path"] == facts["path"]
    done("erase", "photo.png", "mask.png", "-m", "migan", "-o", "out.png")
    before, after = done("models").stdout.split("To pull, networks for erasing:")
    assert "migan" in before and "eraser" in before and "migan" not in after
    assert hub.requests == []
    done("models", "remove", "migan", "--yes")
    assert "not in the cache" in answered("info", "migan")["what"]


def test_the_files_of_moebius_come_together(hub: Any, tmp_path: Path) -> None:
    for name in (*FILES, "unet_fp16.onnx", "README.md"):
        (tmp_path / name).write_bytes(name.encode())
    hub.add(ERASER_NAMES["moebius"].repository, tmp_path)
    answer = answered("models", "pull", "moebius")
    assert [Path(place).name for place in answer["places"]] == list(FILES)
    assert sorted(Path(name).name for name in hub.files_sent) == sorted(FILES)
    assert "cannot be opened" in refused("info", "moebius")  # the stand-ins are no networks


def test_info_recognises_a_file(pixels: np.ndarray) -> None:
    facts = answered("info", "tiny.onnx")
    assert facts["what"] == "a network for erasing, LaMa" and facts["works_at"] == 64
    assert facts["use"] == "retouch erase PHOTO MASK --model tiny.onnx"
    assert "is not there" in refused("info", "none.onnx") or "no file" in refused("info", "none.onnx")
