"""`callback_on_step_end`: the same calls with the same tensors, and the same effect of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from pipeline_pairs import PROMPT, TASKS, Pair, compare_runs, generators, pair, task_inputs

NAMES = ["latents", "prompt_embeds", "negative_prompt_embeds"]
MASK_NAMES = [*NAMES, "mask", "masked_image_latents"]


@pytest.fixture(params=TASKS, ids="-".join)
def each_task(request: pytest.FixtureRequest) -> Pair:
    checkpoint, task = request.param
    return pair(request.getfixturevalue(checkpoint), task)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_what_a_callback_sees(each_task: Pair, scheduler: str) -> None:
    both = each_task.changed(scheduler)
    names = MASK_NAMES if both.task == "inpaint" else NAMES
    # A regular UNet needs no masked picture, and we do not encode one for a callback.
    is_regular = both.ours.unet.config.in_channels == 4
    steps: list[list[Any]] = []

    def run(pipeline: Any, generator: Any) -> list[torch.Tensor]:
        """Return the tensors that the callback saw in all steps, after noting which they were."""
        seen: list[torch.Tensor] = []
        steps.append([])

        def listen(pipe: Any, index: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            assert list(tensors) == names
            assert pipe.guidance_scale == 3.0 and pipe.do_classifier_free_guidance
            shown = {name: value for name, value in tensors.items() if value is not None}
            if is_regular and pipeline is both.theirs:
                shown.pop("masked_image_latents", None)
            steps[-1].append((index, float(timestep), pipe.num_timesteps, list(shown)))
            seen.extend(value.clone() for value in shown.values())
            return tensors

        pipeline(
            PROMPT, **task_inputs(both.task), num_inference_steps=3, guidance_scale=3.0, output_type="latent",
            generator=generator, callback_on_step_end=listen, callback_on_step_end_tensor_inputs=names,
        )  # fmt: skip
        return seen

    compare_runs(run, both.ours, both.theirs)
    assert steps[0] == steps[1] and steps[0]


def test_latents_replaced_in_mid_run(each_task: Pair) -> None:
    def brighten(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + 0.3} if index == 1 else {}

    each_task.compare(**task_inputs(each_task.task), callback_on_step_end=brighten)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "returned"])
@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [*(("tiny_sd_inpaint", name) for name in MASK_NAMES), ("tiny_sd", "latents"), ("tiny_sd", "mask")],
)
def test_every_tensor_can_be_replaced(
    checkpoint: str, name: str, in_place: bool, request: pytest.FixtureRequest
) -> None:
    both = pair(request.getfixturevalue(checkpoint), "inpaint")

    def change(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            value = tensors[name] if in_place else tensors[name].clone()
            if name == "mask":
                value[..., :4] = 0.0
            else:
                value *= 1.3
            tensors[name] = value
        return tensors

    arguments = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}
    if name != "negative_prompt_embeds":  # without effect in the reference, which has joined them before
        both.compare(**task_inputs("inpaint"), **arguments)
    pictures = [
        both.ours(PROMPT, **task_inputs("inpaint"), num_inference_steps=4, generator=generators(7),
                  output_type="pt", **extra).images
        for extra in ({}, arguments)
    ]  # fmt: skip
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


@pytest.mark.parametrize("step", [0, 2])
def test_interrupting_as_the_reference_is_interrupted(each_task: Pair, step: int) -> None:
    calls: list[int] = []

    def interrupt(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(index)
        pipe._interrupt = index == step
        return tensors

    each_task.compare(**task_inputs(each_task.task), callback_on_step_end=interrupt)
    assert calls[: 2 * (step + 1)] == 2 * list(range(step + 1))
    assert not vars(each_task.ours).get("_interrupt", False)
    each_task.compare(**task_inputs(each_task.task))  # the next call is not interrupted


def test_guidance_switched_off_on_the_way(each_task: Pair) -> None:
    masks = ["mask", "masked_image_latents"] if each_task.task == "inpaint" else []

    def cut(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == int(pipe.num_timesteps * 0.4):
            pipe._guidance_scale = 0.0
            for name, value in tensors.items():
                if name != "latents" and value is not None:
                    tensors[name] = value.chunk(2)[-1]
        return tensors

    each_task.compare(
        **task_inputs(each_task.task),
        num_inference_steps=5,
        callback_on_step_end=cut,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", *masks],
    )


def test_guidance_switched_off_needs_no_other_tensor(tiny_sd_inpaint: Path) -> None:
    """In the reference the callback must halve mask and masked picture; ours halves them itself."""
    halved: list[torch.Tensor] = []
    rows: list[int] = []
    for masks in ([], ["mask", "masked_image_latents"]):

        def cut(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index == 1:
                pipe._guidance_scale = 0.0
                tensors = {name: value.chunk(2)[-1] for name, value in tensors.items()}
            return tensors

        ours = pair(tiny_sd_inpaint, "inpaint").ours
        listening = {
            "callback_on_step_end": cut,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds", *masks],
        }
        arguments = {**task_inputs("inpaint"), "num_inference_steps": 4, "output_type": "pt"}
        keep = ours.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        halved.append(ours(PROMPT, **arguments, **listening, generator=generators(7)).images)
        keep.remove()
    assert torch.equal(*halved)
    assert rows == 2 * [2, 2, 1, 1, 1]  # half the rows from then on


@pytest.mark.parametrize("several", [False, True])
def test_callback_objects_of_the_reference(tiny_sd: Path, several: bool) -> None:
    cutoff: Any = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    pair(tiny_sd, "image2image").compare(
        **task_inputs("image2image"),
        callback_on_step_end=MultiPipelineCallbacks([cutoff]) if several else cutoff,
    )
