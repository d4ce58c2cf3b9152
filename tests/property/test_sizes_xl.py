"""SDXL at any size: no buckets, no squashing, and what the model is told of sizes it did not choose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from pipeline_pairs import XL_NAMES, load, mask, photo

import retouch

sides = strategies.integers(8, 90)
latent_sides = strategies.integers(1, 11)
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
KINDS = [
    ("tiny_sdxl", "image2image"),
    ("tiny_sdxl_refiner", "image2image"),
    ("tiny_sdxl", "inpaint"),
    ("tiny_sdxl_inpaint", "inpaint"),
]


@pytest.fixture(scope="module")
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    @functools.cache
    def pipeline(checkpoint: str, task: str) -> Any:
        return load(retouch, XL_NAMES[task], request.getfixturevalue(checkpoint))

    def run(checkpoint: str, task: str, **arguments: Any) -> Any:
        defaults = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 1.0}
        if task != "text2image":
            defaults["strength"] = 1.0
        source = torch.Generator().manual_seed(1)
        return pipeline(checkpoint, task)("a cat", **{**defaults, **arguments}, generator=source).images

    return run


def inputs(task: str, width: int, height: int) -> dict[str, Any]:
    hole = (0, 0, width // 2, height // 2)
    return {"image": photo(0, width, height)} | (
        {"mask_image": mask(hole, width, height)} if task == "inpaint" else {}
    )


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@few
@given(width=sides, height=sides)
def test_a_picture_keeps_its_size(call: Any, checkpoint: str, task: str, width: int, height: int) -> None:
    result = call(checkpoint, task, **inputs(task, width, height))
    assert result.shape == (1, height, width, 3)
    assert np.isfinite(result).all()


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@few
@given(width=latent_sides, height=latent_sides)
def test_latents_keep_their_size(call: Any, checkpoint: str, task: str, width: int, height: int) -> None:
    """Also such as the UNet cannot halve."""
    given = {
        **inputs(task, 8 * width, 8 * height),
        "image": torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0)),
    }
    assert call(checkpoint, task, **given).shape == (1, 8 * height, 8 * width, 3)
    assert call(checkpoint, task, **given, output_type="latent").shape == (1, 4, height, width)


@few
@given(width=latent_sides, height=latent_sides)
def test_text_to_image_at_any_multiple_of_8(call: Any, width: int, height: int) -> None:
    result = call("tiny_sdxl", "text2image", width=8 * width, height=8 * height)
    assert result.shape == (1, 8 * height, 8 * width, 3)


def test_text_to_image_has_the_checkpoint_s_size(call: Any) -> None:
    assert call("tiny_sdxl", "text2image").shape == (1, 64, 64, 3)
    assert call("tiny_sdxl", "text2image", width=96).shape == (1, 64, 96, 3)


@pytest.mark.parametrize(("checkpoint", "task"), KINDS)
@pytest.mark.parametrize(("width", "height"), [(61, 43), (17, 80), (64, 41)])
def test_an_odd_size_is_that_of_the_filled_up_picture(
    call: Any, checkpoint: str, task: str, width: int, height: int
) -> None:
    """The model paints the filled-up picture and is told that one's size, as if the caller had filled it."""
    right, bottom = -width % 8, -height % 8

    def filled(picture: Image.Image, mode: str) -> Image.Image:
        values = np.asarray(picture)
        margins = [(0, bottom), (0, right), (0, 0)][: values.ndim]
        return Image.fromarray(np.pad(values, margins, mode=mode))

    given = inputs(task, width, height)
    whole = {name: filled(picture, "edge") for name, picture in given.items()}
    result = call(checkpoint, task, **given)
    expected = call(checkpoint, task, **whole)
    assert np.array_equal(result, expected[:, :height, :width])
    told = call(checkpoint, task, **given, original_size=(height + bottom, width + right))
    assert np.array_equal(result, told)
    assert not np.array_equal(result, call(checkpoint, task, **given, original_size=(height, width)))


@pytest.mark.parametrize("kind", ["array", "tensor", "list of tensors"])
def test_arrays_and_tensors_too(call: Any, kind: str) -> None:
    pixels = np.asarray(photo(0, 61, 43), np.float32) / 255
    hole = np.asarray(mask((10, 10, 40, 30), 61, 43), np.float32) / 255
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    image: Any = {"array": pixels, "tensor": tensor[None], "list of tensors": [tensor]}[kind]
    result = call("tiny_sdxl", "inpaint", image=image, mask_image=hole)
    pictures = {"image": photo(0, 61, 43), "mask_image": mask((10, 10, 40, 30), 61, 43)}
    assert result.shape == (1, 43, 61, 3)
    assert_close(result, lambda: call("tiny_sdxl", "inpaint", **pictures))


def test_pictures_are_whole(call: Any) -> None:
    (result,) = call("tiny_sdxl", "inpaint", **inputs("inpaint", 61, 43), output_type="pil")
    assert result.size == (61, 43)
