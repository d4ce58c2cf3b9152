"""`--speed` and RETOUCH_SPEED."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import answered, done, refused, retouch, write_mask, write_photo


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETOUCH_SPEED", raising=False)
    write_photo(tmp_path / "photo.png")
    write_mask(tmp_path / "mask.png")


def test_the_words_on_the_command_line(tiny_sd_inpaint: Path) -> None:
    edit = ("inpaint", "photo.png", "mask.png", "-m", tiny_sd_inpaint, "--size", 64, "--steps", 3)
    place = ("--overwrite", "--device", "cpu", "--dtype", "float32")
    exact = answered(*edit, *place)["settings"]
    assert exact["speed"] == "exact" and exact["scheduler"] is None
    fast = answered(*edit, *place, "--speed", "fast")["settings"]
    assert fast["speed"] == "fast" and fast["scheduler"] == "dpm++ 2m trailing" and fast["steps"] == 3
    assert fast["reuse_deep_features"] == 2
    apart = answered(
        *edit,
        *place,
        "--reuse-deep-features",
        2,
        "--guidance-interval",
        "0.2,1",
        "--no-int8",
        "-o",
        "out.png",
    )["settings"]
    assert apart["speed"] == "exact" and apart["reuse_deep_features"] == 2
    assert apart["guidance_interval"] == [0.2, 1] and apart["int8"] is False
    command = answered("info", "out.png")["command"]
    assert "--reuse-deep-features 2" in command and "--guidance-interval 0.2,1" in command
    balanced = answered(*edit, *place, RETOUCH_SPEED="balanced")["settings"]
    assert balanced["speed"] == "balanced" and balanced["reuse_deep_features"] > 1


def test_what_is_no_interval_is_refused() -> None:
    edit = ("inpaint", "photo.png", "mask.png", "--guidance-interval")
    assert "is not an interval of noise levels" in refused(*edit, "1,0.5")
    assert "Two noise levels" in refused(*edit, "most")


def test_another_word_is_refused_before_a_model_is_loaded() -> None:
    result = retouch("inpaint", "photo.png", "mask.png", "--speed", "turbo")
    assert result.exit_code == 2
    for word in ("'turbo'", "exact", "balanced", "fast"):
        assert word in result.stderr
    assert "--speed" in done("inpaint", "--help").stdout
