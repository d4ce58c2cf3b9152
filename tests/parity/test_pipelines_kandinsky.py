"""Kandinsky 2.2 compared with the reference: the prior, the decoder's tasks, and both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from kandinsky_pairs import (
    DECODERS,
    KandinskyPair,
    combined_pair,
    decoder_pair,
    embeds,
    loaded,
    prior_pair,
    prompts,
    task_inputs,
)
from pipeline_pairs import compare_runs, generators, mask, photo
from tiny_checkpoints_kandinsky import WIDTH

import retouch

TASKS = ["text2image", "image2image", "inpaint"]
# "pt" is compared only where both have the same range; the reference's is [-1, 1] in two of three tasks.
NUMPY = {"output_type": "np"}


@pytest.fixture
def decoders(tiny_kandinsky: Path, tiny_kandinsky_inpaint: Path) -> Any:
    return lambda task: decoder_pair(tiny_kandinsky_inpaint if task == "inpaint" else tiny_kandinsky, task)


@pytest.fixture
def combined(tiny_kandinsky: Path, tiny_kandinsky_inpaint: Path, tiny_kandinsky_prior: Path) -> Any:
    folders = {"inpaint": tiny_kandinsky_inpaint}
    return lambda task: combined_pair(folders.get(task, tiny_kandinsky), tiny_kandinsky_prior, task)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_inference_steps": 25},
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.0, "negative_prompt": "a bench"},
        {"guidance_scale": 0.5, "negative_prompt": "a bench"},
        {"prompt": ["a cat", "a castle in the park"], "num_images_per_prompt": 2},
        {"prompt": ["a cat", "a castle"], "negative_prompt": ["a", "a park"], "num_images_per_prompt": 2},
        {"num_images_per_prompt": 2, "seeds": [3, 4]},
        {"output_type": "np"},
        {"latents": torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))},
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_prior(arguments: dict[str, Any], tiny_kandinsky_prior: Path) -> None:
    prior_pair(tiny_kandinsky_prior).compare(**{"prompt": "a cat", **arguments})


@pytest.mark.parametrize(
    "options",
    [{}, {"negative_prior_prompt": "a bench"}, {"negative_prompt": "a park"}, {"num_images_per_prompt": 2}],
    ids=str,
)
def test_interpolation(options: dict[str, Any], tiny_kandinsky_prior: Path) -> None:
    pair, picture = prior_pair(tiny_kandinsky_prior), photo(width=50, height=40)
    tensor = torch.randn(1, 3, 32, 32)

    def run(prior: Any, generator: Any) -> Any:
        made = prior.interpolate(
            ["a cat", picture, tensor, "a castle"],
            [0.3, 0.4, -0.1, 0.4],
            num_inference_steps=3,
            generator=generator,
            **options,
        )
        return made.to_tuple()

    compare_runs(run, pair.ours, pair.theirs)


def test_zero_embedding(tiny_kandinsky_prior: Path) -> None:
    pair = prior_pair(tiny_kandinsky_prior)
    assert_close(pair.ours.get_zero_embed(2), lambda: pair.theirs.get_zero_embed(2))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 9.0},
        {"num_images_per_prompt": 2},
        {"num_images_per_prompt": 2, "seeds": [1, 2]},
        {"output_type": "latent"},
        {"output_type": "pil"},
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_decoder(decoders: Any, task: str, arguments: dict[str, Any]) -> None:
    decoders(task).compare(**{**embeds(), **task_inputs(task), **NUMPY, **arguments})


@pytest.mark.parametrize("task", ["text2image", "inpaint"])
def test_given_noise(decoders: Any, task: str) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=generators(4))
    decoders(task).compare(**embeds(), **task_inputs(task), **NUMPY, latents=noise)


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_strength(decoders: Any, strength: float) -> None:
    inputs = {**task_inputs("image2image"), "strength": strength}
    decoders("image2image").compare(**embeds(), **inputs, **NUMPY, num_inference_steps=10)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "DDIMScheduler", "steps_offset": 1},
        {"name": "DDPMScheduler", "variance_type": "fixed_small"},
        {"name": "DDPMScheduler", "thresholding": False},
    ],
    ids=str,
)
def test_schedulers(decoders: Any, task: str, scheduler: dict[str, Any]) -> None:
    pair = decoders(task).scheduled(**scheduler)
    pair.compare(**embeds(), **task_inputs(task), **NUMPY)


def test_a_scheduler_of_the_reference(decoders: Any) -> None:
    pair = decoders("inpaint")
    ours = retouch.KandinskyV22InpaintPipeline.from_pipe(pair.ours, scheduler=pair.theirs.scheduler)
    KandinskyPair(ours, pair.theirs).compare(**embeds(), **task_inputs("inpaint"), **NUMPY)


@pytest.mark.parametrize("task", ["image2image", "inpaint"])
def test_pictures_are_resized_as_by_the_reference(decoders: Any, task: str) -> None:
    # To a square, because the reference's image2image uses the width as the height.
    inputs = {**task_inputs(task), "image": photo(width=150, height=90)}
    if task == "inpaint":
        inputs["mask_image"] = mask((30, 20, 101, 64), width=150, height=90)
    decoders(task).compare(**embeds(), **inputs, **NUMPY)


def test_not_square(decoders: Any) -> None:
    inputs = {"image": photo(width=150, height=70), "mask_image": mask(width=150, height=70)}
    decoders("inpaint").compare(**embeds(), **inputs, **NUMPY, height=64, width=128)
    decoders("text2image").compare(**embeds(), **NUMPY, height=64, width=128)


@pytest.mark.parametrize("kind", ["array", "list"])
def test_kinds_of_pictures(decoders: Any, kind: str) -> None:
    picture, hole = photo(), mask()
    inputs: dict[str, Any] = {"image": np.asarray(picture), "mask_image": np.asarray(hole, np.float32) / 255}
    if kind == "list":
        inputs = {"image": [picture], "mask_image": [hole]}
    decoders("inpaint").compare(**embeds(), **inputs, **NUMPY, height=64, width=64)


def test_embeddings_as_a_list(decoders: Any) -> None:
    given = {name: list(rows.split(1)) for name, rows in embeds(2).items()}
    decoders("text2image").compare(**given, **task_inputs("text2image"), **NUMPY)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"negative_prompt": "a bench", "prior_guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"prior_num_inference_steps": 7, "num_inference_steps": 3},
        {"num_images_per_prompt": 2},
        {"num_images_per_prompt": 2, "seeds": [1, 2]},
        {"latents": torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))},
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
def test_combined(combined: Any, task: str, arguments: dict[str, Any]) -> None:
    combined(task).compare(**{**prompts(task), **NUMPY, **arguments})


@pytest.mark.parametrize("task", TASKS)
def test_combined_for_several_prompts(combined: Any, task: str) -> None:
    """All rows have one picture, because the reference pastes the first picture's surroundings into all."""
    inputs = {**prompts(task), "prompt": ["a cat", "a castle"], "negative_prompt": ["a", "a park"]}
    combined(task).compare(**inputs, **NUMPY)


@pytest.mark.parametrize("task", TASKS)
def test_callbacks_hear_the_same(combined: Any, task: str) -> None:
    names = ["latents", "image_embeds", "negative_image_embeds"]
    names += ["masked_image", "mask_image"] if task == "inpaint" else []
    prior_names = ["latents", "prompt_embeds", "text_encoder_hidden_states", "text_mask"]
    steps: list[list[Any]] = []

    def run(pipeline: Any, generator: Any) -> list[torch.Tensor]:
        """Return the tensors that the callbacks saw in all steps, after noting which they were."""
        seen: list[torch.Tensor] = []
        steps.append([])

        def listen(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps[-1].append((index, int(timestep), list(tensors)))
            seen.extend(value.clone() for value in tensors.values())
            return {}

        pipeline(
            **prompts(task),
            **NUMPY,
            num_inference_steps=4,
            generator=generator,
            callback_on_step_end=listen,
            callback_on_step_end_tensor_inputs=names,
            prior_callback_on_step_end=listen,
            prior_callback_on_step_end_tensor_inputs=prior_names,
        )
        return seen

    pair = combined(task)
    compare_runs(run, pair.ours, pair.theirs)
    assert steps[0] == steps[1] and len(steps[0]) == 3 + (2 if task == "image2image" else 4)


@pytest.mark.parametrize("name", ["latents", "image_embeds", "mask_image", "masked_image"])
def test_callbacks_change_the_same(combined: Any, name: str) -> None:
    changes = {
        "latents": lambda value: value * 0.9,
        "image_embeds": lambda value: value.flip(1),
        "mask_image": lambda value: value.roll(2, dims=-1),
        "masked_image": lambda value: value * 0.5,
    }

    def change(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: changes[name](tensors[name])} if index == 1 else {}

    def wrap() -> dict[str, Any]:
        return {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}

    pair = combined("inpaint")
    changed = pair.compare(**prompts("inpaint"), **NUMPY, wrap=wrap)
    plain = pair.ours(**prompts("inpaint"), **NUMPY, num_inference_steps=4, generator=generators(7)).images
    assert np.abs(changed - plain).max() > 1e-3


def test_the_size_without_a_picture(tiny_kandinsky: Path) -> None:
    ours = loaded(retouch, DECODERS["text2image"], tiny_kandinsky)
    assert ours.default_size == 8 * ours.unet.config.sample_size
    assert ours(**embeds(), num_inference_steps=1).images[0].size == (64, 64)
