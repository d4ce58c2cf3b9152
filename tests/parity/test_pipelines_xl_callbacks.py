"""`callback_on_step_end` for SDXL reads and replaces tensors, pooled text and size ids among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from pipeline_pairs import PROMPT, Pair, compare_runs, generators, task_inputs, xl_pair

TASKS = [
    ("tiny_sdxl", "text2image"),
    ("tiny_sdxl_refiner", "image2image"),
    ("tiny_sdxl", "inpaint"),
    ("tiny_sdxl_inpaint", "inpaint"),
]
ADDED = ["add_text_embeds", "add_time_ids"]


@pytest.fixture(params=TASKS, ids="-".join)
def each_task(request: pytest.FixtureRequest) -> Pair:
    checkpoint, task = request.param
    return xl_pair(request.getfixturevalue(checkpoint), task)


def test_what_a_callback_sees(each_task: Pair) -> None:
    names = ["latents", "prompt_embeds", *ADDED]
    # In text2image the reference gives the size ids of both halves to the wrong rows of a batch.
    sizes = {} if each_task.task == "text2image" else {"negative_original_size": (32, 16)}

    def run(pipeline: Any, generator: Any) -> list[torch.Tensor]:
        """Return the tensors that the callback saw in all steps."""
        seen: list[list[torch.Tensor]] = []

        def listen(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            assert list(tensors) == names and index == len(seen)
            assert all(len(tensors[name]) == 4 for name in ADDED)
            seen.append([value.clone() for value in tensors.values()])
            return tensors

        pipeline(
            PROMPT, **task_inputs(each_task.task), **sizes, num_inference_steps=4, num_images_per_prompt=2,
            guidance_scale=3.0, negative_prompt="a bench", output_type="latent", generator=generator,
            callback_on_step_end=listen, callback_on_step_end_tensor_inputs=names,
        )  # fmt: skip
        assert seen
        return [value for step in seen for value in step]

    compare_runs(run, each_task.ours, each_task.theirs)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "returned"])
@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize(("checkpoint", "task"), [TASKS[0], TASKS[3]])
def test_what_the_model_is_told_can_be_replaced(
    checkpoint: str, task: str, name: str, in_place: bool, request: pytest.FixtureRequest
) -> None:
    both = xl_pair(request.getfixturevalue(checkpoint), task)

    def change(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            value = tensors[name] if in_place else tensors[name].clone()
            value *= 1.5
            tensors[name] = value
        return tensors

    arguments = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}
    both.compare(**task_inputs(task), **arguments)
    pictures = [
        both.ours(PROMPT, **task_inputs(task), num_inference_steps=4, generator=generators(7),
                  output_type="pt", **extra).images
        for extra in ({}, arguments)
    ]  # fmt: skip
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


def cut(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Switch guidance off after some steps, as the reference's page on callbacks does."""
    if index == int(pipe.num_timesteps * 0.4):
        pipe._guidance_scale = 0.0
        for name, value in tensors.items():
            if name != "latents" and value is not None:
                tensors[name] = value.chunk(2)[-1]
    return tensors


def test_guidance_switched_off_on_the_way(each_task: Pair) -> None:
    masks = ["mask", "masked_image_latents"] if each_task.task == "inpaint" else []
    each_task.compare(
        **task_inputs(each_task.task),
        num_inference_steps=6,
        callback_on_step_end=cut,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", *ADDED, *masks],
    )


def test_callback_object_of_the_reference(each_task: Pair) -> None:
    cutoff: Any = SDXLCFGCutoffCallback(cutoff_step_ratio=0.4)
    inputs = {**task_inputs(each_task.task), "num_inference_steps": 6}
    if each_task.task != "inpaint":
        each_task.compare(**inputs, callback_on_step_end=cutoff)
        return
    # It does not change the mask; from its two rows the reference makes two pictures, or fails.
    by_hand = {
        "callback_on_step_end": cut,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds", *ADDED, "mask", "masked_image_latents"],
    }
    pictures = [
        each_task.ours(PROMPT, **inputs, **listening, generator=generators(7), output_type="pt").images
        for listening in ({"callback_on_step_end": cutoff}, by_hand)
    ]
    assert torch.equal(*pictures)


def test_interrupting(each_task: Pair) -> None:
    def interrupt(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return tensors

    each_task.compare(**task_inputs(each_task.task), num_inference_steps=6, callback_on_step_end=interrupt)
