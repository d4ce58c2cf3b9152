"""The inpainting guide's examples for Stable Diffusion run as they stand, but for the name of the library.

The guide is not part of this repository: where it is not at hand, our own short versions are all that
runs. Checkpoints and pictures come from the stand-in, under the guide's names and addresses.
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
    GRID,
    GUIDE,
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

from retouch.utils import make_inpaint_condition

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


SHORE = """
import torch
from diffusers import AutoPipelineForInpainting
from diffusers.utils import load_image
pipeline = AutoPipelineForInpainting.from_pretrained("{name}", torch_dtype=torch.float16).to("cuda")
where = "https://huggingface.co/datasets/YiYiXu/testing-images/resolve/main/"
base, mask = load_image(where + "seashore.png"), load_image(where + "seashore_mask.png")
"""


TWO_KINDS = "Non-inpaint specific checkpoints"


def short(extra: str = "", name: str = INPAINTING, hole: str = "inpaint_mask") -> str:
    return "\n".join([OPEN.format(name=name, mask=hole), CALL.format(extra=extra), GRID])


# For each example: the guide's heading, which of its blocks, our short version, and what must come out.
EXAMPLES: dict[str, tuple[str, list[int], str, Callable[[Names], None]]] = {
    "mask blur": (
        "Mask blur",
        [0],
        SHORE.format(name=REGULAR) + "blurred_mask = pipeline.mask_processor.blur(mask, blur_factor=33)",
        a_soft_mask,
    ),
    "inpainting": ("Stable Diffusion Inpainting", [0], short("generator=generator"), another_picture),
    "regular": (TWO_KINDS, [0], short("generator=generator", REGULAR), another_picture),
    "specific": (TWO_KINDS, [1], short("generator=generator"), another_picture),
    "road, regular": (TWO_KINDS, [2], short("", REGULAR, "road-mask"), another_picture),
    "road, specific": (TWO_KINDS, [3], short("", INPAINTING, "road-mask"), another_picture),
    "overlay": (
        TWO_KINDS,
        [4],
        short()
        + """
image.save("repainted_image.png")
unmasked_unchanged_image = pipeline.image_processor.apply_overlay(mask_image, init_image, image)
unmasked_unchanged_image.save("force_unmasked_unchanged.png")
""",
        an_overlay,
    ),
    "strength": ("Strength", [0], short("strength=0.6"), another_picture),
    "guidance scale": ("Guidance scale", [0], short("guidance_scale=2.5"), another_picture),
    "negative prompt": ("Negative prompt", [0], short("negative_prompt='blurry'"), another_picture),
    "padding mask crop": (
        "Padding mask crop",
        [0],
        SHORE.format(name=REGULAR)
        + """
generator = torch.Generator("cuda").manual_seed(0)
options = dict(image=base, mask_image=mask, strength=0.75, generator=generator, num_inference_steps=4)
image = pipeline("boat", **options, padding_mask_crop=32).images[0]
""",
        a_pasted_crop,
    ),
    "text to image": (
        "Text-to-image-to-inpaint",
        [0, 1],
        f"""
import torch
from diffusers import AutoPipelineForText2Image
pipeline = AutoPipelineForText2Image.from_pretrained(
    "{REGULAR}", torch_dtype=torch.float16, variant="fp16", use_safetensors=True
)
text2image = pipeline("an elven castle", num_inference_steps=3).images[0]
mask_image = text2image
""",
        a_drawn_picture,
    ),
    "inpaint to image": (
        "Inpaint-to-image-to-image",
        [0],
        short() + "\nimage_inpainting = image.resize((128, 128))",
        an_inpainted_picture,
    ),
}  # fmt: skip


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not at hand")
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_guides_example(example: str, world: Path) -> None:
    heading, wanted, _, check = EXAMPLES[example]
    blocks = guide_blocks()[heading]
    check(run([blocks[index] for index in wanted], {}))


@pytest.mark.parametrize("example", EXAMPLES)
def test_our_short_version(example: str, world: Path) -> None:
    *_, code, check = EXAMPLES[example]
    check(run([code], {}))


WEIGHTED = """
image = pipeline(prompt_embeds=prompt_embeds,
    negative_prompt_embeds=negative_prompt_embeds,
    image=init_image,
    mask_image=mask_image
).images[0]
"""


@pytest.mark.parametrize("source", ["guide", "short"])
def test_prompt_weighting(source: str, world: Path) -> None:
    """The guide takes the embeddings from Compel; here they are weighted by hand."""
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    names = run([short()], {})
    positive, negative = names["pipeline"].encode_prompt("a cat", negative_prompt="a bench")
    names |= {"prompt_embeds": 1.1 * positive, "negative_prompt_embeds": negative}
    plain = names["image"]
    run([guide_blocks()["Prompt weighting"][0] if source == "guide" else WEIGHTED], names)
    another_picture(names)
    assert names["image"].tobytes() != plain.tobytes()


CHAINED = """
from diffusers import AutoPipelineForImage2Image
pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
pipeline.enable_xformers_memory_efficient_attention()
image = pipeline(prompt=prompt, image=image).images[0]
"""


@pytest.mark.parametrize("source", ["guide", "short"])
def test_a_chain_that_stays_in_latents(source: str, world: Path) -> None:
    """As the guide's tip says: with Stable Diffusion 1.5 for both, latents need not be decoded between."""
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    names = run([short("output_type='latent'", REGULAR).replace(GRID, "prompt = 'an elven castle'")], {})
    assert names["image"].shape == (4, 8, 8)
    inpainting = names["pipeline"]
    names["image_inpainting"] = names["init_image"]
    if source == "guide":
        from retouch import AutoPipelineForImage2Image

        names["AutoPipelineForImage2Image"] = AutoPipelineForImage2Image
    run([guide_blocks()["Inpaint-to-image-to-image"][2] if source == "guide" else CHAINED], names)
    another_picture(names)
    assert type(names["pipeline"]).__name__ == "StableDiffusionImg2ImgPipeline"
    assert names["pipeline"].unet is inpainting.unet and names["pipeline"].vae is inpainting.vae


CONTROLLED = f"""
import torch
from diffusers import AutoPipelineForImage2Image, ControlNetModel, StableDiffusionControlNetInpaintPipeline
from diffusers.utils import load_image, make_image_grid, make_inpaint_condition
half = dict(torch_dtype=torch.float16)
controlnet = ControlNetModel.from_pretrained("{CONTROLNET}", variant="fp16", **half)
pipeline = StableDiffusionControlNetInpaintPipeline.from_pretrained(
    "{INPAINTING}", controlnet=controlnet, variant="fp16", **half
)
pipeline.enable_model_cpu_offload()
pipeline.enable_xformers_memory_efficient_attention()
where = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/"
init_image, mask_image = load_image(where + "inpaint.png"), load_image(where + "inpaint_mask.png")
control_image = make_inpaint_condition(init_image, mask_image)
options = dict(num_inference_steps=3)
image = pipeline("a castle", init_image, mask_image, control_image=control_image, **options).images[0]
restyle = AutoPipelineForImage2Image.from_pretrained("{ELDEN_RING}", **half)
image_elden_ring = restyle("elden ring style castle", image=image, **options).images[0]
make_image_grid([init_image, mask_image, image, image_elden_ring], rows=2, cols=2)
"""


@pytest.mark.parametrize("source", ["guide", "short"])
def test_controlnet_and_a_new_style(
    source: str, world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]
) -> None:
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    net = tiny_controlnet(tiny_checkpoint("guide_inpaint"))
    net.save_pretrained(world / "net")
    net.half().save_pretrained(world / "net", variant="fp16")
    hub.add(CONTROLNET, world / "net")
    hub.add(ELDEN_RING, tiny_checkpoint("guide_elden_ring", seed=33, **SMALL))
    blocks = guide_blocks()["ControlNet"] if source == "guide" else [CONTROLLED]
    # The guide's own condition stands in its block; one of its names is imported in another example.
    names = run(blocks, {"PIL": PIL})
    another_picture(names)
    assert names["image_elden_ring"].size == names["image"].size
    assert names["image_elden_ring"].tobytes() != names["image"].tobytes()
    condition = make_inpaint_condition(names["init_image"], names["mask_image"])
    assert torch.equal(names["control_image"], condition) and float(condition.min()) == -1
    if source == "guide":
        assert names["make_inpaint_condition"] is not make_inpaint_condition


@pytest.mark.parametrize("source", ["guide", "short"])
def test_sdxl_inpainting(
    source: str, world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]
) -> None:
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    settings: dict[str, Any] = {"kind": "inpaint", "variant": "fp16", "seed": 34}
    hub.add(SDXL_INPAINTING, tiny_checkpoint("guide_sdxl_inpaint", stable_diffusion_xl, **settings))
    guides = guide_blocks()["Stable Diffusion XL (SDXL) Inpainting"] if source == "guide" else []
    names = run(guides or [short("generator=generator", SDXL_INPAINTING)], {})
    assert type(names["pipeline"]).__name__ == "StableDiffusionXLInpaintPipeline"
    another_picture(names)


REFINED = f"""
image_inpainting = image.resize((1024, 1024))
pipeline = AutoPipelineForInpainting.from_pretrained(
    "{REFINER}", torch_dtype=torch.float16, variant="fp16"
)
prompt = "an elven castle"
options = dict(image=image_inpainting, mask_image=mask_image, num_inference_steps=2)
image = pipeline(prompt=prompt, **options, output_type="latent").images[0]
"""


@pytest.mark.parametrize("source", [pytest.param("guide", marks=pytest.mark.slow), "short"])
def test_a_chain_with_the_refiner(
    source: str, world: Path, hub: HubStandIn, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Two inpainting pipelines and an image-to-image one, the last two of them in latent space."""
    if source == "guide" and not GUIDE.exists():
        pytest.skip("the guide is not at hand")
    settings: dict[str, Any] = {"kind": "refiner", "variant": "fp16", "seed": 35, **NARROW}
    hub.add(REFINER, tiny_checkpoint("guide_refiner", stable_diffusion_xl, **settings))
    guides = guide_blocks()["Inpaint-to-image-to-image"] if source == "guide" else []
    finish = CHAINED.replace("image=image", "image=image, strength=0.04")
    *inpainted, last = guides or [short(), REFINED, finish]
    names = run(inpainted, {}, "mask_image is 64x64 but image is 1024x1024")
    refiner = names["pipeline"]
    assert type(refiner).__name__ == "StableDiffusionXLInpaintPipeline" and refiner.requires_aesthetics_score
    assert names["image"].shape == (4, 128, 128) and names["image_inpainting"].size == (1024, 1024)
    run([last], names)
    a_picture(names, (1024, 1024))
    assert type(names["pipeline"]).__name__ == "StableDiffusionXLImg2ImgPipeline"
    assert names["pipeline"].unet is refiner.unet and names["pipeline"].vae is refiner.vae
