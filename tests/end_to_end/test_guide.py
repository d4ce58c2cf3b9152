"""The inpainting guide's examples for Stable Diffusion run as they stand, but for the name of the library.

Checkpoints and pictures come from the stand-in, under the guide's names and addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from guide import (
    CALL,
    INPAINTING,
    OPEN,
    REGULAR,
    SMALL,
    Names,
    a_picture,
    another_picture,
    guide_blocks,
    run,
)
from hub_stand_in import HubStandIn
from PIL import Image
from tiny_checkpoints_xl import stable_diffusion_xl
from tiny_controls import tiny_controlnet

from retouch import AutoPipelineForImage2Image
from retouch.utils import make_inpaint_condition

BESIDE = Path(__file__).parents[3] / "shared/seeds/inpainting-guide.md"
CONTROLNET = "lllyasviel/control_v11p_sd15_inpaint"
ELDEN_RING = "nitrosocke/elden-ring-diffusion"
SDXL_INPAINTING = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
# For 50 steps at 1024 x 1024: few channels, and attention at a quarter of the resolution.
NARROW = {
    "block_out_channels": (4, 4, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
}


def a_soft_mask(names: Names) -> None:
    levels = np.unique(np.asarray(names["blurred_mask"].convert("L")))
    assert names["blurred_mask"].size == names["mask"].size == (90, 70) and len(levels) > 10


def an_overlay(names: Names) -> None:
    original, hole, forced = (
        np.asarray(names[name]) for name in ("init_image", "mask_image", "unmasked_unchanged_image")
    )
    kept = hole.max(axis=-1) == 0
    assert (forced[kept] == original[kept]).all() and (forced[~kept] != original[~kept]).any()
    for file in ("repainted_image.png", "force_unmasked_unchanged.png"):
        with Image.open(file) as saved:
            assert saved.size == names["init_image"].size


def a_pasted_crop(names: Names) -> None:
    a_picture(names, (90, 70))
    base, hole, image = (np.asarray(names[name]) for name in ("base", "mask", "image"))
    kept = hole.max(axis=-1) == 0
    assert (image[kept] == base[kept]).all() and (image[~kept] != base[~kept]).any()


def a_drawn_picture(names: Names) -> None:
    assert names["text2image"].size == names["mask_image"].size == (64, 64)


def an_inpainted_picture(names: Names) -> None:
    assert names["image_inpainting"].size[0] == names["image_inpainting"].size[1]


TWO_KINDS = "Non-inpaint specific checkpoints"
# For each example: the guide's heading, which of its blocks, and what must come out.
EXAMPLES: dict[str, tuple[str, list[int], Callable[[Names], None]]] = {
    "mask blur": ("Mask blur", [0], a_soft_mask),
    "inpainting": ("Stable Diffusion Inpainting", [0], another_picture),
    "regular": (TWO_KINDS, [0], another_picture),
    "specific": (TWO_KINDS, [1], another_picture),
    "road, regular": (TWO_KINDS, [2], another_picture),
    "road, specific": (TWO_KINDS, [3], another_picture),
    "overlay": (TWO_KINDS, [4], an_overlay),
    "strength": ("Strength", [0], another_picture),
    "guidance scale": ("Guidance scale", [0], another_picture),
    "negative prompt": ("Negative prompt", [0], another_picture),
    "padding mask crop": ("Padding mask crop", [0], a_pasted_crop),
    "text to image": ("Text-to-image-to-inpaint", [0, 1], a_drawn_picture),
    "inpaint to image": ("Inpaint-to-image-to-image", [0], an_inpainted_picture),
}


@pytest.mark.skipif(not BESIDE.exists(), reason="the guide does not lie beside the clone")
def test_the_copy_is_the_guides() -> None:
    """The guide, if it lies beside the clone, has the same blocks under the same headings."""
    assert guide_blocks() == guide_blocks(BESIDE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example(example: str, world: Path) -> None:
    heading, wanted, check = EXAMPLES[example]
    blocks = guide_blocks()[heading]
    check(run([blocks[index] for index in wanted], {}))


def opened(name: str, extra: str) -> Names:
    """Return the names that are left by a short call with a checkpoint of the guide's."""
    return run([OPEN.format(name=name), CALL.format(extra=extra)], {})


def test_prompt_weighting(world: Path) -> None:
    """The guide takes the embeddings from Compel; here they are weighted by hand."""
    names = opened(INPAINTING, "generator=generator")
    positive, negative = names["pipeline"].encode_prompt("a cat", negative_prompt="a bench")
    names |= {"prompt_embeds": 1.1 * positive, "negative_prompt_embeds": negative}
    plain = names["image"]
    run([guide_blocks()["Prompt weighting"][0]], names)
    another_picture(names)
    assert names["image"].tobytes() != plain.tobytes()


def test_a_chain_that_stays_in_latents(world: Path) -> None:
    """As the guide's tip says: with Stable Diffusion 1.5 for both, latents need not be decoded between."""
    names = opened(REGULAR, "output_type='latent'")
    assert names["image"].shape == (4, 8, 8)
    inpainting = names["pipeline"]
    names |= {
        "prompt": "an elven castle",
        "image_inpainting": names["init_image"],
        "AutoPipelineForImage2Image": AutoPipelineForImage2Image,
    }
    run([guide_blocks()["Inpaint-to-image-to-image"][2]], names)
    another_picture(names)
    assert type(names["pipeline"]).__name__ == "StableDiffusionImg2ImgPipeline"
    assert names["pipeline"].unet is inpainting.unet and names["pipeline"].vae is inpainting.vae


def test_controlnet_and_a_new_style(
    world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]
) -> None:
    net = tiny_controlnet(tiny_checkpoint("guide_inpaint"))
    net.save_pretrained(world / "net")
    net.half().save_pretrained(world / "net", variant="fp16")
    hub.add(CONTROLNET, world / "net")
    hub.add(ELDEN_RING, tiny_checkpoint("guide_elden_ring", seed=33, **SMALL))
    # One of the names in these blocks is imported in another example only.
    names = run(guide_blocks()["ControlNet"], {"PIL": PIL})
    another_picture(names)
    assert names["image_elden_ring"].size == names["image"].size
    assert names["image_elden_ring"].tobytes() != names["image"].tobytes()
    condition = make_inpaint_condition(names["init_image"], names["mask_image"])
    assert torch.equal(names["control_image"], condition) and float(condition.min()) == -1
    assert names["make_inpaint_condition"] is not make_inpaint_condition, "the guide has its own"


def test_sdxl_inpainting(world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]) -> None:
    settings: dict[str, Any] = {"kind": "inpaint", "variant": "fp16", "seed": 34}
    hub.add(SDXL_INPAINTING, tiny_checkpoint("guide_sdxl_inpaint", stable_diffusion_xl, **settings))
    names = run(guide_blocks()["Stable Diffusion XL (SDXL) Inpainting"], {})
    assert type(names["pipeline"]).__name__ == "StableDiffusionXLInpaintPipeline"
    another_picture(names)


@pytest.mark.slow
def test_a_chain_with_the_refiner(world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]) -> None:
    """Two inpainting pipelines and an image-to-image one, the last two of them in latent space."""
    settings: dict[str, Any] = {"kind": "refiner", "variant": "fp16", "seed": 35, **NARROW}
    hub.add(REFINER, tiny_checkpoint("guide_refiner", stable_diffusion_xl, **settings))
    *inpainted, last = guide_blocks()["Inpaint-to-image-to-image"]
    names = run(inpainted, {}, "mask_image is 64x64 but image is 1024x1024")
    refiner = names["pipeline"]
    assert type(refiner).__name__ == "StableDiffusionXLInpaintPipeline" and refiner.requires_aesthetics_score
    assert names["image"].shape == (4, 128, 128) and names["image_inpainting"].size == (1024, 1024)
    run([last], names)
    a_picture(names, (1024, 1024))
    assert type(names["pipeline"]).__name__ == "StableDiffusionXLImg2ImgPipeline"
    assert names["pipeline"].unet is refiner.unet and names["pipeline"].vae is refiner.vae
