"""The verbs with Kandinsky, whose prior and learned variance other families lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kandinsky_pairs import combined_pair
from pipeline_pairs import mask, photo

from retouch.editing.editor import Editor
from retouch.editing.memory import with_tiled_vae

HOLE = (100, 60, 150, 110)


@pytest.fixture
def editor(tiny_kandinsky_inpaint: Path, tiny_kandinsky_prior: Path) -> Editor:
    pipeline = combined_pair(tiny_kandinsky_inpaint, tiny_kandinsky_prior, "inpaint").ours
    return Editor(pipeline, show_progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompt": "a bench", "variations": 2},
        {"strength": 0.5, "scheduler": "ddim"},
        {"scheduler": "dpm++ 2m karras", "fill": "noise"},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_inpaint(editor: Editor, options: dict[str, Any]) -> None:
    picture, hole = photo(width=200, height=150), mask(HOLE, 200, 150)
    images = editor.inpaint(picture, hole, "a cat", steps=2, seed=1, **options).images
    assert len(images) == options.get("variations", 1)
    before, after = np.asarray(picture), np.asarray(images[0])
    changed = (before != after).any(axis=-1)
    assert changed[60:110, 100:150].any() and not changed[:30].any() and not changed[:, :70].any()


def test_tiles_where_memory_is_short(editor: Editor) -> None:
    tiled: Any = with_tiled_vae(editor.pipeline, 32)
    assert tiled.movq.use_tiling and not editor.pipeline.vae.use_tiling
    assert tiled.movq.tile_sample_min_size == 32 and tiled.prior_prior is editor.pipeline.prior_prior
    images = tiled("a cat", photo(), mask(), num_inference_steps=1, prior_num_inference_steps=1).images
    assert images[0].size == (64, 64)
