"""`retouch compare`: columns and rows as asked, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_runs import answered, done, read, refused, retouch, write_mask, write_photo

from retouch.editing.compare import compare


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photo(Path("photo.png"))
    write_mask(Path("mask.png"))


QUICK = ("--set", "steps=2", "--dtype", "float32", "--device", "cpu")


def test_models_samplers_and_settings_are_columns_and_prompts_and_seeds_rows(
    tiny_sd: Path, tiny_sd_inpaint: Path
) -> None:
    answer = answered(
        "compare", "photo.png", "mask.png", "a cat", "a bench", "-m", tiny_sd, "-m", tiny_sd_inpaint,
        "--vary", "scheduler=ddim,euler a", "--vary", "strength=0.5,1", "--seed", 1, "--seed", 2, *QUICK,
        "-o", "sheet.png", "--table", "table.md",
    )  # fmt: skip
    results = answer["results"]
    columns = list(dict.fromkeys(result["column"] for result in results))
    assert columns == [
        f"{model}, {sampler}, strength {strength}"
        for model in ("tiny_sd", "tiny_sd_inpaint")
        for sampler in ("ddim", "euler a")
        for strength in (0.5, 1.0)
    ]
    rows = list(dict.fromkeys((result["prompt"], result["seed"]) for result in results))
    assert rows == [("a cat", 1), ("a cat", 2), ("a bench", 1), ("a bench", 2)]
    assert len({result["changed_inside"] for result in results}) == len(results) == 32
    height, width, _ = read("sheet.png").shape
    assert width > 9 * 256 and height > 4 * 200
    table = Path("table.md").read_text()
    assert table.count("\n") == 34 and "| tiny_sd, ddim, strength 0.5 | a cat | 1 |" in table


def test_a_large_photo_is_scaled_down(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(Path("large.png"), (320, 160))
    sizes = []

    def recorded(image: Any, mask: Any, *rest: Any, **settings: Any) -> Any:
        sizes.append((image.size, mask.size))
        return compare(image, mask, *rest, **settings)

    monkeypatch.setattr("retouch.editing.compare.compare", recorded)
    for index, size in enumerate(([], ["--size", 128], ["--size", 500])):
        words = (*QUICK, *size, "-o", f"{index}.png")
        done("compare", "large.png", "80,40,200,120", "-m", tiny_sd, *words)
    # The first is the checkpoint's own size; a photo is not enlarged.
    assert sizes == [((64, 32), (64, 32)), ((128, 64), (128, 64)), ((320, 160), (320, 160))]


def test_the_text_is_the_table(tiny_sd: Path) -> None:
    result = done("compare", "photo.png", "24,16,56,48", *QUICK, RETOUCH_MODEL=str(tiny_sd))
    assert result.stdout.startswith("| | prompt | seed |") and "photo-compare.png" in result.stdout
    assert read("photo-compare.png").ndim == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vary", "strength"],
        ["--vary", "colour=1,2"],
        ["--vary", "steps=few"],
        ["--set", "strength=0.5,1"],
        ["--size", "3"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert retouch("compare", "photo.png", "mask.png", "-m", "org/name", *arguments).exit_code == 2


def test_what_cannot_be_compared_is_one_line() -> None:
    assert "Did you mean sdxl?" in refused("compare", "photo.png", "mask.png", "-m", "./x", "-m", "sdxll")
    assert "nothere" in refused("compare", "photo.png", "nothere.png", "-m", "org/name")
    assert ".png" in refused("compare", "photo.png", "mask.png", "-m", "org/name", "-o", "sheet")
    assert sorted(os.listdir()) == ["mask.png", "photo.png"]
