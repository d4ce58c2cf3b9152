"""The inpainting guide's examples for Kandinsky 2.2 run as they stand, but for the name of the library.

Its first example is one of them: the decoder is named, and the prior is found by the decoder's card.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guide import Names, a_picture, another_picture, guide_blocks, run
from hub_stand_in import HubStandIn
from tiny_checkpoints_kandinsky import PRIOR_ID, kandinsky22_decoder

import retouch

DECODER = "kandinsky-community/kandinsky-2-2-decoder-inpaint"
# For each example: the guide's heading, and the name of the picture that it starts from.
EXAMPLES = {
    "the first example": ("Inpainting", "init_image"),
    "Kandinsky": ("Kandinsky 2.2 Inpainting", "init_image"),
    "text to image to inpaint": ("Text-to-image-to-inpaint", "text2image"),
}


@pytest.fixture
def kandinsky(
    world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path], tiny_kandinsky_prior: Path
) -> HubStandIn:
    """The hub with the two repositories, whose files are as many as the published ones."""
    decoder = tiny_checkpoint("guide_kandinsky", kandinsky22_decoder, in_channels=9, seed=41)
    hub.add(DECODER, decoder)
    hub.add(PRIOR_ID, tiny_kandinsky_prior)
    return hub


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example(example: str, kandinsky: HubStandIn) -> None:
    heading, start = EXAMPLES[example]
    names: Names = run(guide_blocks()[heading], {})
    a_picture(names)
    if start == "init_image":
        another_picture(names)
    assert names["image"].tobytes() != names[start].tobytes()
    pipeline: Any = names["pipeline"]
    assert type(pipeline) is retouch.KandinskyV22InpaintCombinedPipeline
    assert pipeline.name_or_path == DECODER and pipeline.dtype == pipeline.prior_prior.dtype
    assert {"README.md", "movq/config.json", "prior/config.json"} <= set(kandinsky.files_sent)


def test_from_the_cache_alone(kandinsky: HubStandIn) -> None:
    """Both repositories, and the card that ties them together, are there: no request is made."""
    load = retouch.AutoPipelineForInpainting.from_pretrained
    load(DECODER)
    kandinsky.forget()
    pipeline = load(DECODER, local_files_only=True)
    assert type(pipeline.prior_prior).__name__ == "PriorTransformer"
    load(DECODER)
    assert kandinsky.requests == []


def test_fetched_without_being_loaded(kandinsky: HubStandIn) -> None:
    folders = retouch.AutoPipelineForInpainting.download(DECODER)
    assert [(folder / "model_index.json").is_file() for folder in folders] == [True, True]
    kandinsky.forget()
    retouch.AutoPipelineForInpainting.from_pretrained(DECODER, local_files_only=True)
    assert kandinsky.requests == []


def test_the_prior_is_not_on_the_hub(kandinsky: HubStandIn) -> None:
    del kandinsky.repositories[PRIOR_ID]
    with pytest.raises(retouch.CheckpointError, match=f"{PRIOR_ID} is neither a local folder nor"):
        retouch.AutoPipelineForInpainting.from_pretrained(DECODER)
