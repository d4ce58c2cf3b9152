"""A comparison: which calls it makes, its figures and its sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_pairs import load, mask, photo

import retouch
from retouch.images.mask_reading import read_masks
from retouch.images.seam import change, seam_score

OPTIONS = {"num_inference_steps": 2}


@pytest.fixture
def regular(tiny_sd: Path):
    return load(retouch, "StableDiffusionInpaintPipeline", tiny_sd)


def test_each_result_is_its_own_call(regular, tiny_sd_inpaint: Path) -> None:
    special = load(retouch, "StableDiffusionInpaintPipeline", tiny_sd_inpaint)
    comparison = retouch.compare(
        photo(), mask(), ["a cat", ""], {"regular": regular, "special": special}, seeds=[3, 4], **OPTIONS
    )
    results = comparison.results
    assert [(r.column, r.prompt, r.seed) for r in results] == [
        (column, prompt, seed)
        for prompt in ("a cat", "")
        for seed in (3, 4)
        for column in ("regular", "special")
    ]
    alone = special(
        "", image=photo(), mask_image=mask(), generator=torch.Generator().manual_seed(4), **OPTIONS
    ).images[0]
    assert np.array_equal(results[-1].image, alone)
    assert (results[-1].changed_inside, results[-1].changed_outside) == change(
        photo(), alone, *read_masks(mask())
    )
    assert results[-1].seam == seam_score(alone, mask()) and results[-1].seconds > 0


def test_settings_that_vary(regular) -> None:
    comparison = retouch.compare(
        photo(),
        mask(),
        "a cat",
        regular,
        vary={"strength": [0.5, 1.0], "guidance_scale": [2.5, 7.5]},
        **OPTIONS,
    )
    assert [result.column for result in comparison.results] == [
        "strength 0.5, guidance_scale 2.5",
        "strength 0.5, guidance_scale 7.5",
        "strength 1.0, guidance_scale 2.5",
        "strength 1.0, guidance_scale 7.5",
    ]
    assert len({result.image.tobytes() for result in comparison.results}) == 4


def test_sheet_and_table(regular, tmp_path: Path) -> None:
    comparison = retouch.compare(
        photo(width=96, height=48), mask(width=96, height=48), "a cat", [regular], seeds=[1, 2], **OPTIONS
    )
    cell = (256 + 8, 128 + 2 * 17 + 8)
    assert comparison.image.width == 8 + 2 * cell[0] and comparison.image.height > 2 * cell[1]
    lines = comparison.table.splitlines()
    assert len(lines) == 2 + 2 and all(line.count("|") == 8 for line in lines)
    assert comparison.save(tmp_path / "sheet.png").stat().st_size > 1000
    shown = np.asarray(comparison.image.crop((8 + cell[0], 60, 8 + cell[0] + 256, 180)))
    assert shown.std() > 5, "the results are on the sheet"


@pytest.mark.parametrize(
    "empty", [{"prompts": []}, {"seeds": []}, {"pipelines": []}, {"vary": {"strength": []}}]
)
def test_nothing_to_compare(regular, empty: dict) -> None:
    arguments = {"prompts": "a cat", "pipelines": regular, **empty}
    with pytest.raises(retouch.InputError, match="is empty"):
        retouch.compare(photo(), mask(), **arguments)
