"""The inpainting guide's examples for Kandinsky 2.2 run as they stand, but for the name of the library.

Its first example is one of them: the decoder is named, and the prior is found by the decoder's card.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guide import CALL, GRID, GUIDE, OPEN, REGULAR, Names, a_picture, another_picture, guide_blocks, run
from hub_stand_in import HubStandIn
from tiny_checkpoints_kandinsky import PRIOR_ID, kandinsky22_decoder

import retouch

DECODER = "kandinsky-community/kandinsky-2-2-decoder-inpaint"
FEW = "prior_num_inference_steps=2"
START = OPEN.format(name=DECODER, mask="inpaint_mask").replace(', variant="fp16"', "")
CHAIN = f"""
import torch
from diffusers import AutoPipelineForText2Image, AutoPipelineForInpainting
from diffusers.utils import load_image, make_image_grid
half = dict(torch_dtype=torch.float16)
few = dict(num_inference_steps=3, {FEW})
pipeline = AutoPipelineForText2Image.from_pretrained("{REGULAR}", variant="fp16", **half)
text2image = pipeline("an elven castle", num_inference_steps=3).images[0]
where = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/"
mask_image = load_image(where + "inpaint_text-chain-mask.png")
pipeline = AutoPipelineForInpainting.from_pretrained("{DECODER}", **half)
pipeline.enable_model_cpu_offload()
prompt = "digital painting of a fantasy waterfall, cloudy"
image = pipeline(prompt=prompt, image=text2image, mask_image=mask_image, **few).images[0]
make_image_grid([text2image, mask_image, image], rows=1, cols=3)
"""

# For each example: the guide's heading, our short version, and the name of the picture that it starts from.
EXAMPLES = {
    "the first example": (
        "Inpainting",
        "\n".join([START, CALL.format(extra=f"negative_prompt='ugly', {FEW}"), GRID]),
        "init_image",
    ),
    "Kandinsky": (
        "Kandinsky 2.2 Inpainting",
        "\n".join([START, CALL.format(extra=f"generator=generator, {FEW}"), GRID]),
        "init_image",
    ),
    "text to image to inpaint": ("Text-to-image-to-inpaint", CHAIN, "text2image"),
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


@pytest.mark.parametrize("source", ["guide", "short"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_guides_example(source: str, example: str, kandinsky: HubStandIn) -> None:
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    heading, code, start = EXAMPLES[example]
    names: Names = run(guide_blocks()[heading] if source == "guide" else [code], {})
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
