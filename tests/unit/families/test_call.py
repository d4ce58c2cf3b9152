"""The arguments of a call: counting prompts, callback objects, and sizes that a family can paint."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from refusals import refuses

from retouch.families.call import IMAGE_TO_IMAGE, INPAINT, Call, check_call, make_call

ACCEPTED = ("prompt", "image", "mask_image", "strength", "width", "guidance_scale")


def test_arguments_become_a_call_with_the_defaults_of_the_task() -> None:
    given = {"prompt": "a cat", "image": "picture", "mask_image": "mask", "strength": 0.5, "width": None}
    call = make_call(given, INPAINT, ACCEPTED)
    assert (call.prompt, call.image, call.mask_image) == ("a cat", "picture", "mask")
    assert call.strength == 0.5 and call.num_inference_steps == 50 and call.guidance_scale == 7.5
    assert make_call({"image": "picture", "strength": None}, IMAGE_TO_IMAGE, ACCEPTED).strength == 0.8
    assert (
        make_call({"image": "picture", "guidance_scale": None}, IMAGE_TO_IMAGE, ACCEPTED).guidance_scale
        == 7.5
    )


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"prompt": "a cat"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt_embeds": torch.zeros(3, 77, 8)}, 3),
        ({}, 0),
    ],
)
def test_how_many_prompts(arguments: dict[str, Any], count: int) -> None:
    assert Call(**arguments).prompts == count


def test_a_callback_object_brings_its_names() -> None:
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    assert Call(prompt="a", callback_on_step_end=cutoff).callback_tensors == ["prompt_embeds"]
    assert Call(prompt="a", callback_on_step_end=print).callback_tensors == ("latents",)


def test_a_call_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Call(prompt="a").prompt = "b"  # type: ignore[misc]


@pytest.mark.parametrize("value", [8, torch.tensor(8).item()])
def test_sizes_are_multiples_of_the_familys(value: int) -> None:
    check_call(Call(prompt="a", height=value), 8, ["latents"])
    with refuses("height", 8, 16):
        check_call(Call(prompt="a", height=value), 16, ["latents"])
