"""What SDXL's own arguments refuse before anything is computed, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from pipeline_pairs import XL_NAMES, generators, load, task_inputs

import retouch
from retouch.errors import InputError


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
    ("arguments", "message"),
    [
        ({"prompt_2": 3}, "prompt_2 is 3.*string.*list"),
        ({"prompt_2": ["a", "b"]}, "prompt_2 has 2 entries for 1 prompts"),
        ({"negative_prompt_2": ["a", 1]}, "negative_prompt_2 is .*string.*list"),
        ({**BY_EMBEDDINGS, "prompt_2": "a"}, "Both prompt_2 and prompt_embeds were given"),
        ({**AGAINST, "negative_prompt_2": "a"}, "Both negative_prompt_2 and negative_prompt_embeds"),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": None}, "prompt_embeds and pooled_prompt_embeds belong"),
        ({**AGAINST, "negative_prompt_embeds": None}, "negative_prompt_embeds and negative_pooled.*missing"),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": [1]}, "pooled_prompt_embeds is not a tensor of"),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": pooled(2)}, "holds 1 prompts and pooled_prompt_embeds 2"),
        ({**BY_EMBEDDINGS, "pooled_prompt_embeds": pooled(width=9)}, "expects 72 numbers.*get 57"),
        ({**BY_EMBEDDINGS, "prompt_embeds": states(width=32)}, "prompt_embeds has the width 32.*width 72"),
        ({"original_size": 64}, "original_size=64 is not a pair of numbers"),
        ({"target_size": (1, 2, 3)}, r"target_size=\(1, 2, 3\) is not a pair"),
        ({"negative_target_size": "ab"}, "negative_target_size='ab' is not a pair"),
        ({"crops_coords_top_left": 3}, "crops_coords_top_left=3 is not a pair"),
        ({"denoising_end": 1.0}, "denoising_end=1.0 is not between 0 and 1.*Leave it out"),
        ({"denoising_end": "half"}, "denoising_end='half' is not between"),
        ({"denoising_end": 0.01}, "denoising_end=0.01 leave no step.*more steps"),
        ({"denoising_start": 0.5}, "denoising_start was given.*text2image"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_refusals(call: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call("tiny_sdxl", "text2image", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aesthetic_score": "good"}, "aesthetic_score='good' is not a finite number"),
        ({"negative_aesthetic_score": float("nan")}, "negative_aesthetic_score=nan is not"),
        (
            {"denoising_start": 0.6, "denoising_end": 0.5},
            "denoising_start=0.6 is not before denoising_end=0.5",
        ),
        ({"denoising_start": 0.999}, "denoising_start=0.999 .*leave no step"),
        ({"requires_aesthetics_score": True}, "no argument 'requires_aesthetics_score'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_refusals_of_a_finish(call: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call("tiny_sdxl_refiner", "image2image", **arguments)


def test_a_refiner_that_is_taken_for_a_base_model(tiny_sdxl_refiner: Path) -> None:
    wrong = retouch.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_sdxl_refiner, requires_aesthetics_score=False
    )
    with pytest.raises(InputError, match=r"expects 64 numbers.*get 72.*requires_aesthetics_score=True"):
        wrong("a cat", **task_inputs("image2image"))


def test_an_inpainting_checkpoint_needs_a_mask(call: Any) -> None:
    with pytest.raises(InputError, match=r"inpainting checkpoint.*9 channels"):
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
    with pytest.raises(InputError, match=r"without text_encoder_2\. Give prompt_embeds"):
        light("a cat", **options)
