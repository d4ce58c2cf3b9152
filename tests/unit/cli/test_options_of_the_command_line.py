from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from retouch.cli.options import (
    Fill,
    Hole,
    Join,
    MaskMode,
    Model,
    Painting,
    Reading,
    flag_of,
    given,
    short_names,
)
from retouch.editing.filling import erase
from retouch.editing.options import Options
from retouch.images import fill, join, mask_reading

GROUPS = (Painting, Reading, Hole)


def test_the_choices_are_those_of_the_library() -> None:
    assert get_args(Fill) == get_args(fill.Fill)
    assert get_args(Join) == get_args(join.Method)
    assert get_args(MaskMode) == get_args(mask_reading.MaskMode)


def test_every_option_of_the_verbs_is_there() -> None:
    wanted = {field.name for field in dataclasses.fields(Options)} - {"prompt", "record", "progress"}
    there = {flag_of(field.name) for group in GROUPS for field in dataclasses.fields(group)}
    assert {flag_of(name) for name in wanted} == there


def shown_default(group: Any, name: str) -> Any:
    (option,) = get_type_hints(group, include_extras=True)[name].__metadata__
    return option.show_default


@pytest.mark.parametrize("name", ["steps", "strength", "guidance", "variations", "mask_mode", "join"])
def test_the_defaults_that_help_shows_are_those_of_the_library(name: str) -> None:
    group = next(group for group in GROUPS if name in {field.name for field in dataclasses.fields(group)})
    keyword = {"guidance": "guidance_scale"}.get(name, name)
    value = getattr(Options(), keyword)
    assert shown_default(group, name).split(",")[0] == (
        f"{value:g}" if isinstance(value, float) else str(value)
    )


def test_defaults_that_differ_by_verb_begin_with_the_common_one() -> None:
    for name in ("grow", "context", "fill"):
        assert str(shown_default(Hole, name)).split(",")[0] == str(getattr(Options(), name))


def test_defaults_without_a_model_are_those_of_a_fill() -> None:
    settings = erase(np.zeros((40, 40, 3), np.uint8), (10, 10, 20, 20)).settings
    for group, name in ((Painting, "seed"), (Hole, "fill"), (Hole, "feather")):
        assert str(shown_default(group, name)).endswith(f"; without a model {settings[name]}")


def test_only_what_is_given_is_passed_on() -> None:
    assert given(Painting(), Reading(), Hole()) == {}
    options = given(Painting(negative="mud", guidance=3.0, seed=0), Reading(invert=True), Hole(context="64"))
    assert options == {
        "negative_prompt": "mud",
        "guidance_scale": 3.0,
        "seed": 0,
        "invert": True,
        "context": 64.0,
    }
    Options.of(**options)
    assert given(Hole(context="30%")) == {"context": "30%"}
    assert given(Hole(context="wide")) == {"context": "wide"}  # refused by the library, in its words


def test_how_a_model_is_loaded() -> None:
    assert Model().loading() == {"device": None, "dtype": None}
    assert Model(variant="fp16", device="cpu", pickled=True).loading() == {
        "device": "cpu",
        "dtype": None,
        "variant": "fp16",
        "use_safetensors": False,
    }


def test_completion_offers_short_names() -> None:
    assert [name for name, _ in short_names("sdxl")] == ["sdxl-inpaint", "sdxl", "sdxl-refiner"]
    assert all(note for _, note in short_names(""))
