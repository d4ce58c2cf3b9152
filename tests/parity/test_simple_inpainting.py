"""The simple inpainting pipeline compared with its algorithm, written out on parts of the reference.

It follows the article that describes it: image2image with one more parameter. Preprocess the mask, resize it
to the latents, and at the end of each step restore the noised original outside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from closeness import assert_close
from PIL import Image
from pipeline_pairs import compare_runs, load, mask, photo

import retouch


@torch.no_grad()
def longhand(
    pipeline: Any,
    prompt: str,
    image: Image.Image,
    mask_image: Image.Image,
    strength: float,
    num_inference_steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> np.ndarray:
    """Run the article's algorithm with the parts of an image2image pipeline of the reference."""
    prompt_embeds, negative_prompt_embeds = pipeline.encode_prompt(prompt, "cpu", 1, True)
    prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])

    # The mask: white becomes one, resized by nearest neighbour to the size of the latents.
    values = torch.from_numpy(np.asarray(mask_image.convert("L"), np.float32) / 255)[None, None]
    height, width = values.shape[-2:]
    factor = pipeline.vae_scale_factor
    small_mask = torch.nn.functional.interpolate(values, size=(height // factor, width // factor))

    pipeline.scheduler.set_timesteps(num_inference_steps)
    timesteps, _ = pipeline.get_timesteps(num_inference_steps, strength, "cpu")

    # The latents of the given image, and the noise at the start.
    pixels = pipeline.image_processor.preprocess(image)
    init_latents = (
        pipeline.vae.encode(pixels).latent_dist.sample(generator) * pipeline.vae.config.scaling_factor
    )
    noise = torch.randn(init_latents.shape, generator=generator)
    latents = pipeline.scheduler.add_noise(init_latents, noise, timesteps[:1])

    for t in timesteps:
        model_input = pipeline.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        predicted = pipeline.unet(model_input, t, encoder_hidden_states=prompt_embeds).sample
        unconditional, conditional = predicted.chunk(2)
        predicted = unconditional + guidance_scale * (conditional - unconditional)
        latents = pipeline.scheduler.step(predicted, t, latents).prev_sample

        # Outside the mask the original with the noise of this step; under it no change.
        init_latents_proper = pipeline.scheduler.add_noise(init_latents, noise, torch.tensor([t]))
        hard_mask = (small_mask > 0.5).to(latents.dtype)
        latents = hard_mask * latents + (1 - hard_mask) * init_latents_proper

    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pipeline.image_processor.postprocess(decoded, output_type="np")


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.3])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("checkpoint", ["tiny_sd", "tiny_sd2"])
def test_against_longhand(
    checkpoint: str, scheduler: str, strength: float, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(checkpoint)
    theirs = load(diffusers, "StableDiffusionImg2ImgPipeline", folder)
    parts = load(retouch, "StableDiffusionImg2ImgPipeline", folder)
    ours = retouch.StableDiffusionSimpleInpaintingPipeline.from_pipe(parts)
    kept = theirs.scheduler
    try:
        theirs.scheduler = getattr(diffusers, scheduler).from_config(kept.config)
        ours.scheduler = getattr(retouch, scheduler).from_config(ours.scheduler.config)
        given = {
            "prompt": "a cat in the park",
            "image": photo(),
            "mask_image": mask(),
            "strength": strength,
            "num_inference_steps": 7,
            "guidance_scale": 4.0,
        }

        def run(pipeline: Any, generator: Any) -> Any:
            if pipeline is theirs:
                return longhand(theirs, **given, generator=generator)
            return pipeline(**given, generator=generator, output_type="np").images

        compare_runs(run, ours, theirs)
    finally:
        theirs.scheduler = kept


def test_the_part_outside_is_the_original_with_a_little_noise(tiny_sd: Path) -> None:
    """The article ends so; our other pipeline ends with the original itself."""
    parts = load(retouch, "StableDiffusionImg2ImgPipeline", tiny_sd)
    options = {"image": photo(), "num_inference_steps": 4, "strength": 0.8, "output_type": "latent"}
    hole = {"mask_image": mask((0, 0, 32, 64))}
    outside = (slice(None), slice(None), slice(None), slice(4, 8))
    results = []
    for name in ("StableDiffusionSimpleInpaintingPipeline", "StableDiffusionInpaintPipeline"):
        pipeline = getattr(retouch, name).from_pipe(parts)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        results.append(pipeline("a cat", **options, **hole, generator=generator).images[outside])

    def encoded() -> torch.Tensor:
        pixels = pipeline.image_processor.preprocess(photo())
        return pipeline.encode(pixels, torch.Generator().manual_seed(0))[outside]

    simple, exact = results
    original = encoded()
    assert_close(exact, encoded)
    distance = (simple.as_subclass(torch.Tensor) - original).std()
    assert 0 < distance < 0.3


def test_a_soft_mask_is_hardened(tiny_sd: Path) -> None:
    from PIL import ImageFilter

    pipeline = retouch.StableDiffusionSimpleInpaintingPipeline.from_pipe(
        load(retouch, "StableDiffusionImg2ImgPipeline", tiny_sd)
    )
    pipeline.set_progress_bar_config(disable=True)
    soft = mask().filter(ImageFilter.GaussianBlur(4))
    hard = soft.point(lambda value: 255 if value > 127 else 0)
    results = [
        pipeline(
            "a cat",
            image=photo(),
            mask_image=hole,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images
        for hole in (soft, hard)
    ]
    assert torch.equal(*results)


def test_what_it_refuses(tiny_sd: Path, tiny_sd_inpaint: Path) -> None:
    pipeline = retouch.StableDiffusionSimpleInpaintingPipeline.from_pipe(
        load(retouch, "StableDiffusionImg2ImgPipeline", tiny_sd)
    )
    with pytest.raises(retouch.InputError, match="needs mask_image"):
        pipeline("a cat", image=photo())
    special = retouch.StableDiffusionSimpleInpaintingPipeline.from_pretrained(tiny_sd_inpaint)
    with pytest.raises(retouch.InputError, match=r"inpainting checkpoint.*StableDiffusionInpaintPipeline"):
        special("a cat", image=photo(), mask_image=mask())
