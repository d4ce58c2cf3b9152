"""Stable Diffusion XL compared with the reference: base, inpainting, refiner, each task, and in stages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipeline_pairs import XL_NAMES, Pair, compare_runs, generators, load, mask, photo, task_inputs, xl_pair

import retouch

BASE, INPAINT, REFINER = "tiny_sdxl", "tiny_sdxl_inpaint", "tiny_sdxl_refiner"


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Any:
    return lambda checkpoint, task: xl_pair(request.getfixturevalue(checkpoint), task)


KINDS = [
    (BASE, "text2image"),
    (BASE, "image2image"),
    (REFINER, "image2image"),
    (BASE, "inpaint"),
    (INPAINT, "inpaint"),
    (REFINER, "inpaint"),
]
SIZES = {
    "original_size": (48, 100),
    "target_size": (70, 64),
    "crops_coords_top_left": (3, 9),
    "negative_original_size": (32, 32),
    "negative_target_size": (16, 40),
}


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 1.0},
        {"negative_prompt": "a bench"},
        {"prompt_2": "a castle", "negative_prompt": "a bench", "negative_prompt_2": "a park"},
        {"prompt": ["a cat", "a castle"], "negative_prompt": ["a", "a bench"], "num_images_per_prompt": 2},
        {"num_images_per_prompt": 2, "seeds": [1, 2], "guidance_rescale": 0.6},
        {"clip_skip": 1},
        {"sigmas": [14.0, 5.0, 1.5, 0.3]},
        {"timesteps": [950, 600, 300, 20]},
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_arguments(made: Any, checkpoint: str, task: str, arguments: dict[str, Any]) -> None:
    strength = {"strength": 0.8} if task == "image2image" else {}
    made(checkpoint, task).compare(**{**task_inputs(task), **strength, **arguments})


@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint"])
@pytest.mark.parametrize("negative", ["neither", "both"])
def test_size_ids(made: Any, task: str, negative: str) -> None:
    given = {name: size for name, size in SIZES.items() if negative == "both" or "negative" not in name}
    made(BASE, task).compare(**task_inputs(task), **given)


def test_each_negative_size_counts(made: Any) -> None:
    """In text2image the reference takes both or neither, and in other tasks no crop."""
    pair = made(BASE, "text2image")
    crop = {"negative_crops_coords_top_left": (5, 6)}
    pair.compare(**task_inputs("text2image"), **SIZES, **crop)
    for task in ("text2image", "inpaint"):
        ours = made(BASE, task).ours
        pictures = [
            ours("a cat", **task_inputs(task), **extra, num_inference_steps=2, generator=generators(1),
                 output_type="pt").images
            for extra in ({}, crop, {"negative_original_size": (9, 9)}, {"negative_target_size": (9, 9)})
        ]  # fmt: skip
        for row, picture in enumerate(pictures):
            assert all(not torch.equal(picture, other) for other in pictures[:row])


@pytest.mark.parametrize("task", ["image2image", "inpaint"])
def test_aesthetic_scores(made: Any, task: str) -> None:
    scores = {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}
    sizes = {
        name: SIZES[name] for name in ("original_size", "crops_coords_top_left", "negative_original_size")
    }
    made(REFINER, task).compare(**task_inputs(task), **scores, **sizes, negative_crops_coords_top_left=(2, 1))


@pytest.mark.parametrize("checkpoint", [BASE, INPAINT])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(
    "scheduler", ["EulerAncestralDiscreteScheduler", "DDIMScheduler", "HeunDiscreteScheduler"]
)
def test_strength(made: Any, checkpoint: str, strength: float, scheduler: str) -> None:
    made(checkpoint, "inpaint").scheduled(scheduler).compare(
        **task_inputs("inpaint"),
        strength=strength,
    )


@pytest.mark.parametrize("checkpoint", [BASE, INPAINT])
def test_padding_mask_crop(made: Any, checkpoint: str) -> None:
    made(checkpoint, "inpaint").compare(
        image=photo(width=120, height=90),
        mask_image=mask((70, 30, 90, 50), width=120, height=90),
        height=64,
        width=64,
        padding_mask_crop=8,
        output_type="pil",
    )


@pytest.mark.parametrize("order", [1, 2])
def test_window_of_the_schedule(made: Any, order: int) -> None:
    scheduler = "HeunDiscreteScheduler" if order == 2 else "EulerDiscreteScheduler"
    noisy = 5 * torch.randn(1, 4, 8, 8, generator=generators(1))
    made(BASE, "image2image").scheduled(scheduler).compare(
        image=noisy, denoising_start=0.3, denoising_end=0.8, num_inference_steps=9, output_type="latent"
    )


@pytest.mark.parametrize("window", [{}, {"denoising_start": 0.4}], ids=["whole", "second stage"])
def test_image2image_from_given_latents(made: Any, window: dict[str, Any]) -> None:
    """The run starts from them; the picture gives only the size of the batch."""
    given = 3 * torch.randn(1, 4, 8, 8, generator=generators(2))
    image = torch.randn(1, 4, 8, 8, generator=generators(3)) if window else photo()
    made(BASE, "image2image").compare(image=image, latents=given, num_inference_steps=6, **window)


def test_distilled_guidance(made: Any, tiny_checkpoint: Any) -> None:
    from tiny_checkpoints_xl import stable_diffusion_xl

    folder = tiny_checkpoint("tiny_sdxl_lcm", stable_diffusion_xl, seed=3, time_cond_proj_dim=12)
    xl_pair(folder, "inpaint").scheduled("LCMScheduler").compare(**task_inputs("inpaint"), guidance_scale=8.0)


def test_given_embeddings(made: Any) -> None:
    pair = made(BASE, "inpaint")
    ours = compare_runs(
        lambda pipeline, _: pipeline.encode_prompt("a cat", "a castle", negative_prompt="a bench"),
        pair.ours,
        pair.theirs,
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    pair.compare(**task_inputs("inpaint"), **dict(zip(names, ours, strict=True)))


@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [(BASE, "inpaint"), (INPAINT, "inpaint"), (REFINER, "inpaint"), KINDS[0], KINDS[2]],
)
def test_saved_by_one_loaded_by_the_other(
    made: Any, checkpoint: str, task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = made(checkpoint, task)
    pair.ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert [record.message for record in caplog.records if "not expected" in record.message] == []
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs).__name__ == XL_NAMES[task]
    for switch in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
        assert theirs.config.get(switch, False) == getattr(pair.ours, switch)
        again = type(pair.ours).from_pretrained(tmp_path)
        assert getattr(again, switch) == getattr(pair.ours, switch)
    Pair(pair.ours, theirs, task).compare(**{**task_inputs(task), "num_inference_steps": 6})


def test_the_vae_keeps_its_dtype(made: Any, tiny_sdxl: Path) -> None:
    """The config needs float32, so a float16 VAE is copied to float32, with the result of float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no native float16 on this CPU
        half = retouch.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    half.vae.half()
    pixels = half.decode(torch.randn(1, 4, 8, 8, generator=generators(3)).half())
    assert pixels.dtype == torch.float32 and half.vae.dtype == torch.float16
    exact = load(retouch, XL_NAMES["text2image"], tiny_sdxl)
    full = torch.randn(1, 4, 8, 8, generator=generators(3)).half().float()
    exact_pixels = exact.decode(full)
    assert (pixels - exact_pixels).abs().max() < 0.02  # the weights were rounded to float16
    assert half.encode(torch.rand(1, 3, 64, 64).half(), generators(4)).dtype == torch.float16
    assert half.vae.dtype == torch.float16
