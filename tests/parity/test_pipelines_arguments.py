"""Whole pipelines with each of their call arguments, one kind of argument at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from PIL import Image
from pipeline_pairs import (
    INPAINTERS,
    PROMPT,
    TASKS,
    Pair,
    as_tensor,
    compare_runs,
    mask,
    pair,
    photo,
    task_inputs,
)

SIZE = {"height": 64, "width": 64}


@pytest.fixture(params=TASKS, ids="-".join)
def each_task(request: pytest.FixtureRequest) -> Pair:
    checkpoint, task = request.param
    return pair(request.getfixturevalue(checkpoint), task)


@pytest.fixture(params=INPAINTERS)
def each_inpainter(request: pytest.FixtureRequest) -> Pair:
    return pair(request.getfixturevalue(request.param), "inpaint")


@pytest.fixture(params=["tiny_sd", "tiny_sd_inpaint"])
def each_width(request: pytest.FixtureRequest) -> Pair:
    return pair(request.getfixturevalue(request.param), "inpaint")


@pytest.fixture
def regular(tiny_sd: Path) -> Pair:
    return pair(tiny_sd, "inpaint")


def embeds(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 77, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"negative_prompt": "a bench"},
        {"num_images_per_prompt": 2},
        {"num_images_per_prompt": 2, "seeds": [1, 2]},
        {"prompt": ["a cat", "a castle"], "negative_prompt": ["a park", "a bench in the park"]},
        {"prompt": ["a cat", "a castle"], "num_images_per_prompt": 2, "seeds": [1, 2, 3, 4]},
        {"prompt": ["a cat", "a castle", "a bench"], "guidance_scale": 1.0},
        {"prompt": ""},
        {"prompt_embeds": embeds(1)},
        {"prompt_embeds": embeds(1), "guidance_scale": 1.0},
        {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(2)},
        {"prompt_embeds": embeds(1, 2), "negative_prompt_embeds": embeds(2, 2), "num_images_per_prompt": 2},
        {"negative_prompt_embeds": embeds(2)},
        {"prompt_embeds": embeds(1, 2), "negative_prompt": ["a bench", ""]},
        {"prompt_embeds": embeds(1)[:, :20]},
        {"prompt_embeds": embeds(1).repeat(1, 2, 1), "negative_prompt_embeds": embeds(2).repeat(1, 2, 1)},
        {"guidance_scale": -3},
    ],
    ids=lambda arguments: "-".join(
        name if isinstance(value, torch.Tensor) else f"{name}={value}" for name, value in arguments.items()
    ),
)
def test_prompts_and_rows(each_task: Pair, arguments: dict[str, Any]) -> None:
    each_task.compare(**task_inputs(each_task.task), **arguments)


@pytest.mark.filterwarnings("ignore:The prompt is longer")
def test_a_prompt_that_is_too_long_is_cut_alike(regular: Pair) -> None:
    words = "a photo of a cat in the park with a highly detailed castle "
    regular.compare(**task_inputs("inpaint"), prompt=words * 10, negative_prompt=words * 12)


def test_guidance_rescale(tiny_sd: Path, tiny_sd2: Path) -> None:
    for folder in (tiny_sd, tiny_sd2):
        pair(folder, "text2image").compare(**SIZE, guidance_rescale=0.7)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(each_task: Pair, clip_skip: int) -> None:
    encoder = each_task.theirs.text_encoder
    # The reference needs a level that transformers 5 removed.
    patched = not hasattr(encoder, "text_model")
    if patched:
        object.__setattr__(encoder, "text_model", encoder)
    try:
        each_task.compare(**task_inputs(each_task.task), clip_skip=clip_skip, negative_prompt="a bench")
    finally:
        if patched:
            del encoder.__dict__["text_model"]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (48, 72), (104, 40)])
def test_sizes_resize_the_picture_and_the_mask(each_width: Pair, height: int, width: int) -> None:
    image, hole = photo(width=90, height=60), mask((11, 7, 50, 51), 90, 60)
    each_width.compare(image=image, mask_image=hole, height=height, width=width, strength=0.8)


def test_text2image_of_another_shape(tiny_sd: Path) -> None:
    pair(tiny_sd, "text2image").compare(height=40, width=72)


def test_image2image_takes_the_pictures_own_size(tiny_sd: Path) -> None:
    pair(tiny_sd, "image2image").compare(image=photo(width=88, height=40), strength=0.6)


def test_default_strength_of_image2image(tiny_sd: Path) -> None:
    pair(tiny_sd, "image2image").compare(image=photo(), num_inference_steps=5)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(("checkpoint", "task"), [TASKS[0], TASKS[2], TASKS[3]], ids="-".join)
def test_latents_are_given(
    checkpoint: str, task: str, scheduler: str, request: pytest.FixtureRequest
) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    both = pair(request.getfixturevalue(checkpoint), task).changed(scheduler)
    both.compare(**task_inputs(task), latents=noise, num_images_per_prompt=2)


def test_latents_are_given_with_less_strength(each_width: Pair) -> None:
    """They are pure noise even then: in the reference, strength changes only the schedule."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    each_width.compare(**task_inputs("inpaint"), latents=noise, strength=0.6)


@pytest.mark.parametrize("rows", [1, 2])
def test_masked_image_latents(each_width: Pair, rows: int) -> None:
    masked = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    prompts = ["a cat", "a castle"]
    each_width.compare(**task_inputs("inpaint"), masked_image_latents=masked, prompt=prompts, strength=0.8)


def test_inpainting_of_latents(each_width: Pair) -> None:
    """The reference can do it if it does not mask the picture."""
    image, masked = (
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)
    )
    inputs = {**task_inputs("inpaint"), "image": image, "masked_image_latents": masked}
    each_width.compare(**inputs, strength=0.8)


@pytest.mark.parametrize("rows", [1, 2])
def test_image2image_of_latents(tiny_sd: Path, rows: int) -> None:
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    pair(tiny_sd, "image2image").compare(image=latents, prompt=["a cat"] * 2, strength=0.8)


def array(seed: int = 0) -> np.ndarray:
    return np.asarray(photo(seed), np.float32) / 255


PICTURES = {
    "L": photo().convert("L").convert("RGB"),
    "array": array(),
    "arrays": np.stack([array(), array(1)]),
    "list of arrays": [array(), array(1)],
    "tensor": torch.from_numpy(array()).movedim(-1, 0),
    "batch tensor": torch.from_numpy(np.stack([array(), array(1)])).movedim(-1, 1),
    "list of tensors": [torch.from_numpy(array(seed)).movedim(-1, 0) for seed in (0, 1)],
    "list of batch tensors": [torch.from_numpy(array(seed)).movedim(-1, 0)[None] for seed in (0, 1)],
    "list of PIL": [photo(), photo(1)],
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(("checkpoint", "task"), TASKS[1:], ids="-".join)
def test_kinds_of_pictures(checkpoint: str, task: str, kind: str, request: pytest.FixtureRequest) -> None:
    image = PICTURES[kind]
    rows = 2 if "list" in kind or "batch" in kind or kind == "arrays" else 1
    inputs = {**task_inputs(task), "image": image, "prompt": ["a cat", "a castle"][:rows], "strength": 0.8}
    pair(request.getfixturevalue(checkpoint), task).compare(**inputs)


def colourful(width: int = 64, height: int = 64) -> Image.Image:
    """Return a mask of three colours on black; one of them counts as white."""
    picture = mask(width=width, height=height).convert("RGB")
    picture.paste((250, 20, 20), (0, 0, 20, 12))
    picture.paste((40, 255, 90), (44, 40, 60, 60))
    return picture


HOLE = np.asarray(mask(), np.float32) / 255
MASKS = {
    "1": mask().convert("1"),
    "RGB": mask().convert("RGB"),
    "P": mask().convert("P"),
    "array": HOLE,
    "array with a channel": HOLE[..., None],
    "array with a batch": HOLE[None, :, :, None],
    "tensor": torch.from_numpy(HOLE),
    "tensor with a channel": torch.from_numpy(HOLE)[None],
    "batch tensor": torch.from_numpy(HOLE)[None, None],
    "list": [mask()],
}


@pytest.mark.parametrize("kind", MASKS)
def test_kinds_of_masks(each_width: Pair, kind: str) -> None:
    each_width.compare(image=photo(), mask_image=MASKS[kind], **SIZE, strength=0.8)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
@pytest.mark.parametrize("size", [(64, 64), (100, 70)])
def test_masks_with_greys_are_hardened_alike_when_asked(
    regular: Pair, mode: str, size: tuple[int, int]
) -> None:
    """Only we have `mask_mode="binary"`, so the reference is called without it."""
    hole = colourful(*size).convert(mode)
    arguments = {**SIZE, "num_inference_steps": 3, "output_type": "np"}

    def run(pipeline: Any, generator: Any) -> Any:
        own = {"mask_mode": "binary"} if pipeline is regular.ours else {}
        return pipeline(PROMPT, photo(0, *size), hole, **arguments, **own, generator=generator).images

    compare_runs(run, regular.ours, regular.theirs)


@pytest.mark.parametrize("seeds", [3, [3, 4]], ids=["one generator", "a list"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("checkpoint", "task"), TASKS[1:], ids="-".join)
def test_different_pictures_in_a_batch(
    checkpoint: str, task: str, strength: float, seeds: Any, request: pytest.FixtureRequest
) -> None:
    inputs: dict[str, Any] = {"image": [photo(1), photo(2)], "prompt": ["a cat", "a castle"]}
    if task == "inpaint":
        inputs |= {"mask_image": [mask(), mask((3, 20, 60, 37))], **SIZE}
    pair(request.getfixturevalue(checkpoint), task).compare(**inputs, strength=strength, seeds=seeds)


@pytest.mark.parametrize("seeds", [3, [3, 4]], ids=["one generator", "a list"])
def test_several_masks_for_one_picture(each_width: Pair, seeds: Any) -> None:
    holes = [mask(), mask((3, 20, 60, 37))]
    prompts = ["a cat", "a castle"]
    each_width.compare(image=photo(), mask_image=holes, prompt=prompts, seeds=seeds, **SIZE, strength=0.8)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding_mask_crop": 0},
        {"padding_mask_crop": 8, "strength": 0.75},
        {"padding_mask_crop": 32, "height": 64, "width": 96},
        {"padding_mask_crop": 5, "height": 96, "width": 40},
        {"padding_mask_crop": 200},
        {"padding_mask_crop": 8, "num_images_per_prompt": 2, "seeds": [1, 2]},
    ],
    ids=str,
)
def test_padding_mask_crop(each_width: Pair, arguments: dict[str, Any]) -> None:
    inputs = {"image": photo(0, 150, 110), "mask_image": mask((90, 61, 131, 83), 150, 110), **SIZE}
    each_width.compare(**{**inputs, **arguments}, output_type="pil")


@pytest.mark.parametrize("mode", ["1", "RGB", "P"])
def test_padding_mask_crop_with_other_masks(regular: Pair, mode: str) -> None:
    inputs = {"image": photo(0, 150, 110), "mask_image": mask((90, 61, 131, 83), 150, 110).convert(mode)}
    regular.compare(**inputs, **SIZE, padding_mask_crop=9, output_type="pil")


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_output_types(each_task: Pair, output_type: str) -> None:
    both = each_task
    arguments = {**task_inputs(both.task), "output_type": output_type, "num_images_per_prompt": 2}
    both.compare(**arguments)
    if output_type == "latent":
        return
    del arguments["num_images_per_prompt"]
    ours, theirs = (
        pipeline(PROMPT, **arguments, num_inference_steps=2, return_dict=False)
        for pipeline in (both.ours, both.theirs)
    )
    assert isinstance(ours, tuple) and len(ours) == len(theirs) == 2
    assert type(ours[0]) is type(theirs[0])
    assert as_tensor(ours[0]).shape == as_tensor(theirs[0]).shape
    assert ours[1] is None and theirs[1] is None


def test_without_a_generator_torchs_own_is_used(each_task: Pair) -> None:
    def run(pipeline: Any) -> Any:
        torch.manual_seed(3)
        inputs = task_inputs(each_task.task)
        return pipeline(PROMPT, **inputs, num_inference_steps=2, output_type="np").images

    assert_close(run(each_task.ours), lambda: run(each_task.theirs))


def test_versions_and_widths(each_inpainter: Pair) -> None:
    """The other tests use Stable Diffusion 1; this one uses all families with a few arguments together."""
    each_inpainter.compare(
        **task_inputs("inpaint"),
        prompt=["a cat", "a castle"],
        negative_prompt=["a bench", ""],
        strength=0.7,
        seeds=[1, 2],
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a cat", "negative_prompt": "a bench"},
        {"prompt": ["a cat", "a castle"], "negative_prompt": ["a bench", ""]},
        {"prompt": ["a cat", "a castle"]},
        {"prompt": None, "prompt_embeds": embeds(1, 2)},
    ],
    ids=lambda arguments: "-".join(arguments),
)
@pytest.mark.parametrize("each", [1, 3])
def test_encode_prompt(tiny_sd: Path, arguments: dict[str, Any], each: int) -> None:
    both = pair(tiny_sd, "text2image")
    given = {"device": "cpu", "num_images_per_prompt": each, "do_classifier_free_guidance": True, **arguments}
    with torch.no_grad():
        assert_close(both.ours.encode_prompt(**given), lambda: both.theirs.encode_prompt(**given))
