"""The calls take the reference's arguments with its defaults; what comes first may be given by position."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import diffusers
import pytest

import retouch
from retouch.families.registry import BUILT_IN_ROWS

NAMES = [
    name
    for row in BUILT_IN_ROWS
    for name in (*row.pipelines.values(), *row.controlled.values(), "KandinskyV22PriorPipeline")
]
# Deprecated in the reference, or for its own subclasses.
NOT_OURS = {"callback", "callback_steps", "kwargs", "self"}


def ours(name: str) -> dict[str, Any]:
    """The arguments of our call with the defaults that hold for its task."""
    kind = getattr(retouch, name)
    found = {}
    for key, parameter in inspect.signature(kind.__call__).parameters.items():
        default = parameter.default
        if default is None:
            groups = [kind.call_type, kind.family.arguments, getattr(kind.controlnet_use, "arguments", None)]
            known = {field.name: field.default for group in groups if group for field in fields(group)}
            default = known.get(key)
        found[key] = kind.task.defaults.get(key, default)
    return found


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_the_arguments_are_the_references(name: str) -> None:
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    mine = ours(name)
    missing = set(theirs) - set(mine) - NOT_OURS
    assert not missing
    for key, parameter in theirs.items():
        if key in NOT_OURS or parameter.default is inspect.Parameter.empty:
            continue
        expected = tuple(parameter.default) if isinstance(parameter.default, list) else parameter.default
        if key == "negative_crops_coords_top_left":
            assert mine[key] is None  # as crops_coords_top_left
        elif key in ("height", "width"):  # None: those of the picture, or the checkpoint's
            assert mine[key] is None and expected in (None, 512)
        else:
            assert mine[key] == expected, key


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"KandinskyV22PriorPipeline"}))
def test_what_is_painted_comes_first(name: str) -> None:
    parameters = list(inspect.signature(getattr(retouch, name).__call__).parameters.values())[1:]
    first = "image_embeds" if name.startswith("KandinskyV22") and "Combined" not in name else "prompt"
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == [first, "image", "mask_image"]


def test_help_explains_each_argument() -> None:
    call = retouch.StableDiffusionXLControlNetInpaintPipeline.__call__
    for name in inspect.signature(call).parameters:
        if name not in ("self", "unknown"):
            assert f"    {name}: " in (call.__doc__ or ""), name
    assert "ControlNet" in (call.__doc__ or "").splitlines()[0]


@pytest.mark.parametrize(
    ("name", "given", "parameter"),
    [
        ("StableDiffusionPipeline", {"strength": 0.5}, "strength"),
        ("StableDiffusionPipeline", {"image": "picture"}, "image"),
        ("StableDiffusionImg2ImgPipeline", {"image": "picture", "mask_image": "mask"}, "mask_image"),
        ("StableDiffusionImg2ImgPipeline", {}, "image"),
        ("StableDiffusionInpaintPipeline", {"image": "picture"}, "mask_image"),
        ("StableDiffusionXLPipeline", {"denoising_start": 0.5}, "denoising_start"),
        ("StableDiffusionControlNetPipeline", {"image": "a", "control_image": "b"}, "control_image"),
        ("StableDiffusionInpaintPipeline", {"num_inference_step": 3}, "num_inference_step"),
    ],
)
def test_a_task_refuses_what_it_cannot_use(name: str, given: dict[str, Any], parameter: str) -> None:
    kind = getattr(retouch, name)
    pipeline = object.__new__(kind)  # arguments are sorted before any part is looked at
    with pytest.raises(retouch.InputError) as refusal:
        pipeline._make_call({"prompt": "a cat", **given})
    assert refusal.value.parameter == parameter


def test_an_unknown_argument_gets_a_hint() -> None:
    pipeline = object.__new__(retouch.StableDiffusionInpaintPipeline)
    with pytest.raises(retouch.InputError, match=r"no argument 'num_inference_step'.*num_inference_steps"):
        pipeline._make_call({"prompt": "a cat", "num_inference_step": 3})
