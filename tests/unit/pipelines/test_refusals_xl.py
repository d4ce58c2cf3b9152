"""What SDXL's own arguments refuse before anything is computed, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from pipeline_pairs import XL_NAMES, generators, load, task_inputs
from refusals import refuses

import retouch


def states(rows: int = 1, width: int = 72) -> torch.Tensor:
    return torch.randn(rows, 77, width)


def pooled(rows: int = 1, width: int = 24) -> torch.Tensor:
    return torch.randn(rows, width)


@pytest.fixture
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def run(checkpoint: str, task: str, **arguments: Any) -> Any:
        pipeline = load(retouch, XL_NAMES[task], request.getfixturevalue(checkpoint))
        defaults = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "pt", **task_inputs(task)}
        return pipeline(**{**defaults, **arguments}, generator=generators(1)).images

    return run


BY_EMBEDDINGS = {"prompt": None, "prompt_embeds": states(), "pooled_prompt_embeds": pooled()}
AGAINST = {"negative_prompt_embeds": states(), "negative_pooled_prompt_embeds": pooled()}


@pytest.mark.parametrize(
    ("arguments", "parameter", "facts"),
    [
        ({"prompt_2": 3}, "prompt_2", [3, "string", "list"]),
        ({"prompt_2": ["a", "b"]}, "prompt_2", [2, 1]),
        ({"negative_prompt_2": ["a", 1]}, "negative_prompt_2", ["string", "list"]),
        ({**BY_EMBEDDINGS, "prompt_2": "a"}, "prompt_2", ["prompt_embeds"]),
        ({**AGAINST, "negative_prompt_2": "a"}, "negative_prompt_2", ["negative_prompt_embeds"]),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": None}, "pooled_prompt_embeds", ["prompt_embeds"]),
        (
            {**AGAINST, "negative_prompt_embeds": None},
            "negative_pooled_prompt_embeds",
            ["negative_prompt_embeds"],
        ),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": [1]}, "pooled_prompt_embeds", ["(prompts, width)"]),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": pooled(2)}, "pooled_prompt_embeds", [1, 2]),
        (
            {**BY_EMBEDDINGS, "pooled_prompt_embeds": pooled(width=9)},
            "requires_aesthetics_score",
            [72, 57],
        ),
        ({**BY_EMBEDDINGS, "prompt_embeds": states(width=32)}, "prompt_embeds", [32, 72]),
        ({"original_size": 64}, "original_size", [64, "pair"]),
        ({"target_size": (1, 2, 3)}, "target_size", [(1, 2, 3), "pair"]),
        ({"negative_target_size": "ab"}, "negative_target_size", ["'ab'", "pair"]),
        ({"crops_coords_top_left": 3}, "crops_coords_top_left", [3, "pair"]),
        ({"denoising_end": 1.0}, "denoising_end", [1.0, "0 and 1"]),
        ({"denoising_end": "half"}, "denoising_end", ["'half'", "0 and 1"]),
        ({"denoising_end": 0.01}, "denoising_end", [0.01]),
        ({"denoising_start": 0.5}, "denoising_start", ["text2image"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals(call: Any, arguments: dict[str, Any], parameter: str, facts: list[Any]) -> None:
    with refuses(parameter, *facts):
        call("tiny_sdxl", "text2image", **arguments)


@pytest.mark.parametrize(
    ("arguments", "parameter", "facts"),
    [
        ({"aesthetic_score": "good"}, "aesthetic_score", ["'good'"]),
        ({"negative_aesthetic_score": float("nan")}, "negative_aesthetic_score", ["nan"]),
        ({"denoising_start": 0.6, "denoising_end": 0.5}, "denoising_start", [0.6, "denoising_end=0.5"]),
        ({"denoising_start": 0.999}, "denoising_start", [0.999]),
        ({"requires_aesthetics_score": True}, "requires_aesthetics_score", []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals_of_a_finish(call: Any, arguments: dict[str, Any], parameter: str, facts: list[Any]) -> None:
    with refuses(parameter, *facts):
        call("tiny_sdxl_refiner", "image2image", **arguments)


def test_a_refiner_that_is_taken_for_a_base_model(tiny_sdxl_refiner: Path) -> None:
    wrong = retouch.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_sdxl_refiner, requires_aesthetics_score=False
    )
    with refuses("requires_aesthetics_score", 64, 72, True):
        wrong("a cat", **task_inputs("image2image"))


def test_an_inpainting_checkpoint_needs_a_mask(call: Any) -> None:
    with refuses("mask_image", "9 channels"):
        call("tiny_sdxl_inpaint", "text2image")


def test_without_text_encoders(call: Any, tiny_sdxl: Path) -> None:
    """Embeddings are enough, so the encoders' gigabytes need not be loaded."""
    whole = load(retouch, XL_NAMES["text2image"], tiny_sdxl)
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    embeddings = dict(zip(names, whole.encode_prompt("a cat", negative_prompt="a bench"), strict=True))
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    light = retouch.StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, **absent)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    result = light(**embeddings, **options, generator=generators(1)).images
    texts = {"prompt": "a cat", "negative_prompt": "a bench"}
    assert_close(result, lambda: whole(**texts, **options, generator=generators(1)).images)
    with refuses("prompt", "text_encoder_2", "prompt_embeds"):
        light("a cat", **options)
