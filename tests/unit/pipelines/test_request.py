"""The call's arguments as data: what help() shows, and how a call becomes a request."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from pipeline_pairs import NAMES
from retouch.pipelines.names import IMAGE_TO_IMAGE, INPAINT, TEXT_TO_IMAGE
from retouch.pipelines.request import Request

import retouch
from retouch.errors import InputError

# Of the reference's arguments these are not there, see docs/differences.md.
ABSENT = {"kwargs"}


@pytest.mark.parametrize("task", NAMES)
def test_the_arguments_are_the_references_in_its_order(task: str) -> None:
    import diffusers

    theirs = inspect.signature(getattr(diffusers, NAMES[task]).__call__).parameters
    ours = inspect.signature(getattr(retouch, NAMES[task]).__call__).parameters
    wanted = [name for name in theirs if name not in ABSENT]
    assert list(ours)[: len(wanted)] == wanted
    for name in wanted:
        mine, reference = ours[name].default, theirs[name].default
        if isinstance(reference, list):
            mine = list(mine)
        assert mine == reference or name == "self", name


@pytest.mark.parametrize("task", NAMES)
def test_help_tells_what_every_argument_means(task: str) -> None:
    call = getattr(retouch, NAMES[task]).__call__
    parameters = list(inspect.signature(call).parameters)[1:]
    text = inspect.getdoc(call) or ""
    for name in parameters:
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{name}: "))
        assert len(line.split(": ", 1)[1]) > 10
    assert call.__name__ == "__call__"


def test_a_call_becomes_a_request() -> None:
    request = INPAINT.bind(("a cat", "picture", "mask"), {"strength": 0.5, "width": None})
    assert (request.prompt, request.image, request.mask_image) == ("a cat", "picture", "mask")
    assert request.strength == 0.5 and request.num_inference_steps == 50 and request.guidance_scale == 7.5
    assert IMAGE_TO_IMAGE.bind(("a cat", "picture"), {}).strength == 0.8
    assert TEXT_TO_IMAGE.bind((), {}).prompt is None


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
    assert Request(**arguments).prompts == count


def test_a_callback_object_brings_its_names() -> None:
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    assert Request(prompt="a", callback_on_step_end=cutoff).listened == ["prompt_embeds"]
    assert Request(prompt="a", callback_on_step_end=print).listened == ("latents",)


def test_a_request_cannot_be_changed_on_the_way() -> None:
    with pytest.raises(AttributeError):
        Request(prompt="a").prompt = "b"  # type: ignore[misc]


@pytest.mark.parametrize("value", [8, torch.tensor(8).item()])
def test_sizes_go_by_the_vaes_factor(value: int) -> None:
    Request(prompt="a", height=value).check(8)
    with pytest.raises(InputError, match=r"height=8 is not a whole number of 16 or more"):
        Request(prompt="a", height=value).check(16)
