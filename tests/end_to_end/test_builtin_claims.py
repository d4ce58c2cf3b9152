"""What guides to inpainting claim, tried on the checkpoint that ships: means over seeds, not single pictures.

Backgrounds and objects are drawn in code, so that the truth behind an object is known. "Closer to the prompt"
is measured by colour: a tomato is red and a green apple green, whoever looks. RETOUCH_TEST_CHECKPOINT names
another folder to try; `pytest -rP` on this file shows all that was measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import retouch
from retouch.images.seam import seam_score

FOLDER = Path(
    os.environ.get("RETOUCH_TEST_CHECKPOINT") or Path(retouch.__file__).parent / "checkpoints" / "builtin"
)
pytestmark = pytest.mark.skipif(
    not (FOLDER / "model_index.json").is_file(),
    reason=f"{FOLDER} holds no checkpoint; `python -m training.run` makes it.",
)

SIDE = 128
STEPS = 6
GUIDANCE = 1.75
COLOURED = {"a tomato": "red", "a red heart": "red", "a green apple": "green", "a four leaf clover": "green"}


@pytest.fixture(scope="module")
def inpainting() -> Any:
    pipeline = retouch.StableDiffusionInpaintPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def regular(inpainting: Any) -> Any:
    unet = retouch.UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet_regular", dtype=torch.float32)
    pipeline = type(inpainting)(**{**inpainting.components, "unet": unet})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def background(number: int, side: int = SIDE) -> np.ndarray:
    """A sky over a meadow, a plain wall or a blurred wood, a little different for each number."""
    draw = np.random.default_rng([1, number])
    palettes = (
        ((105, 150, 205), (200, 215, 230), (95, 125, 60)),
        ((190, 180, 165), (175, 165, 150), (165, 155, 140)),
        ((90, 105, 70), (60, 80, 50), (75, 65, 45)),
    )
    colours = np.array(palettes[number % len(palettes)], np.float32) + draw.normal(0, 8, (3, 3))
    down = np.interp(np.arange(side), [0, 0.55 * side, 0.62 * side, side], [0.0, 1.0, 2.0, 2.0])
    rows = np.stack([np.interp(down, [0, 1, 2], colours[:, channel]) for channel in range(3)], -1)
    texture = cv2.GaussianBlur(draw.normal(0, 60, (side, side)), (0, 0), side / 40)
    return np.clip(rows[:, None] + texture[..., None], 0, 255).astype(np.uint8)


def with_ball(picture: np.ndarray, radius: float = 0.24) -> np.ndarray:
    """A shaded ball of strong magenta in the middle: a colour that no background has."""
    side = picture.shape[0]
    y, x = (np.mgrid[0:side, 0:side] - side / 2) / (radius * side)
    inside = (np.hypot(x, y) < 1).astype(np.float32)[..., None]
    light = (1.1 - 0.5 * np.hypot(x + 0.4, y + 0.4))[..., None].clip(0.3, 1.1)
    return np.clip(picture * (1 - inside) + inside * light * (225, 20, 170), 0, 255).astype(np.uint8)


def box(share: float = 0.66, side: int = SIDE) -> np.ndarray:
    """A square hole in the middle."""
    hole = np.zeros((side, side), bool)
    edge = round(side * (1 - share) / 2 / 8) * 8
    hole[edge:-edge, edge:-edge] = True
    return hole


def paint(
    pipeline: Any,
    prompts: str | Sequence[str],
    pictures: Sequence[np.ndarray],
    hole: np.ndarray,
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    negative_prompt: str | Sequence[str] | None = None,
    **extra: Any,
) -> list[np.ndarray]:
    """One result for each picture, seed 0 for the first, as bytes."""
    count = len(pictures)
    prompts = [prompts] * count if isinstance(prompts, str) else list(prompts)
    if negative_prompt is not None:
        extra["negative_prompt"] = (
            [negative_prompt] * count if isinstance(negative_prompt, str) else list(negative_prompt)
        )
    images = pipeline(
        prompt=prompts,
        image=[Image.fromarray(picture) for picture in pictures],
        mask_image=Image.fromarray(255 * hole.astype(np.uint8)),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        **extra,
    ).images
    return [np.asarray(image) for image in images]


def colour(picture: np.ndarray, name: str, share: float = 0.4) -> float:
    """How much more of a colour than of the others is in the middle, in levels of 0 to 255."""
    side = picture.shape[0]
    edge = round(side * (1 - share) / 2)
    middle = picture[edge:-edge, edge:-edge].astype(np.float32)
    channel = {"red": 0, "green": 1}[name]
    return float((middle[..., channel] - np.delete(middle, channel, -1).max(-1)).mean())


def apart(first: np.ndarray, second: np.ndarray, hole: np.ndarray) -> float:
    """Mean difference in the hole, in levels."""
    return float(np.abs(first.astype(np.float32) - second)[hole].mean())


def detail(picture: np.ndarray, hole: np.ndarray) -> float:
    """Mean slope of brightness in the hole, away from its edge."""
    grey = picture.astype(np.float32).mean(-1)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return float(slope[cv2.erode(hole.astype(np.uint8), np.ones((7, 7))) > 0].mean())


def told(**figures: Any) -> None:
    """Shown by `pytest -rP`, and with a failure."""
    print({name: np.round(value, 3).tolist() for name, value in figures.items()})


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [background(number) for number in range(6)]


NAMED = list(COLOURED) * 3  # as many as twice the scenes


@pytest.fixture(scope="module")
def named(inpainting: Any, scenes: list[np.ndarray]) -> list[np.ndarray]:
    """Things of a strong colour, painted as usual."""
    return paint(inpainting, NAMED, scenes * 2, box())


def test_more_strength_changes_more(inpainting: Any, scenes: list[np.ndarray]) -> None:
    hole, strengths = box(), (0.25, 0.5, 0.75, 1.0)
    changes = []
    for strength in strengths:
        painted = paint(inpainting, "a red apple", scenes, hole, strength=strength)
        pairs = zip(painted, scenes, strict=True)
        changes.append(np.mean([apart(after, before, hole) for after, before in pairs]))
    told(strengths=strengths, changes=changes)
    assert all(later > 1.05 * sooner for sooner, later in pairwise(changes))


def test_more_guidance_comes_closer_to_the_prompt(
    inpainting: Any, scenes: list[np.ndarray], named: list[np.ndarray]
) -> None:
    """Up to a scale of about 2. From there on this model overshoots: colours turn into glaring other ones."""
    unguided = paint(inpainting, NAMED, scenes * 2, box(), guidance_scale=1)
    means = [
        np.mean([colour(picture, COLOURED[name]) for picture, name in zip(pictures, NAMED, strict=True)])
        for pictures in (unguided, named)
    ]
    told(scales=(1, GUIDANCE), colour=means)
    assert means[1] > means[0] + 3


def test_a_negative_prompt_moves_away_from_what_it_names(
    inpainting: Any, scenes: list[np.ndarray], named: list[np.ndarray]
) -> None:
    """Towards another colour than the named thing's, and away from what that looks like."""
    found = {}
    for label, negative in (("without", None), ("with", NAMED)):
        painted = paint(inpainting, "a house", scenes * 2, box(), negative_prompt=negative)
        triples = list(zip(painted, NAMED, named, strict=True))
        found[label] = (
            np.mean([colour(picture, COLOURED[name]) for picture, name, _ in triples]),
            np.mean([apart(picture, shown, box()) for picture, _, shown in triples]),
        )
    told(**found)
    assert found["with"][0] < found["without"][0] - 2
    assert found["with"][1] > found["without"][1] + 1


def test_an_inpainting_unet_leaves_less_seam_than_a_regular_one(
    inpainting: Any, regular: Any, scenes: list[np.ndarray]
) -> None:
    hole = box(0.5)
    mask = Image.fromarray(255 * hole.astype(np.uint8))
    seams = {}
    for label, pipeline in (("inpainting", inpainting), ("regular", regular)):
        painted = paint(pipeline, "", scenes, hole, guidance_scale=1)
        seams[label] = np.mean([seam_score(Image.fromarray(picture), mask) for picture in painted])
    told(**seams)
    assert seams["inpainting"] < 0.9 * seams["regular"]


def test_a_crop_gives_a_small_hole_more_detail(inpainting: Any) -> None:
    """In a photo twice as large as what the model works on, a hole of a fifth of its side."""
    hole = box(0.2, 256)
    photos = [background(number, 256) for number in range(4)]
    prompts = ["a tomato", "a house"] * 2
    shrunk = [
        np.asarray(Image.fromarray(photo).resize((SIDE, SIDE), Image.Resampling.BOX)) for photo in photos
    ]
    small = np.asarray(Image.fromarray(hole).resize((SIDE, SIDE)))
    whole = [
        np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS))
        for picture in paint(inpainting, prompts, shrunk, small)
    ]
    cropped = [
        paint(inpainting, prompt, [photo], hole, padding_mask_crop=16, width=SIDE, height=SIDE)[0]
        for prompt, photo in zip(prompts, photos, strict=True)
    ]
    editor = retouch.load(FOLDER, device="cpu", dtype="float32", progress=False)
    edited = [
        np.asarray(editor.inpaint(photo, hole, prompt, seed=seed, steps=STEPS).image)
        for seed, (prompt, photo) in enumerate(zip(prompts, photos, strict=True))
    ]
    each_way = (whole, cropped, edited)
    details = [np.mean([detail(picture, hole) for picture in pictures]) for pictures in each_way]
    # Noise would have much detail, too: the tomatoes have to be red.
    red = [np.mean([colour(picture, "red", 0.12) for picture in pictures[::2]]) for pictures in each_way]
    told(detail=details, red=red)
    assert min(details[1:]) > 1.2 * details[0] and min(red[1:]) > 20


def test_an_overlay_keeps_the_rest(inpainting: Any, scenes: list[np.ndarray]) -> None:
    hole = box()
    mask, photo = Image.fromarray(255 * hole.astype(np.uint8)), Image.fromarray(scenes[0])
    painted = paint(inpainting, "a red apple", scenes[:1], hole)[0]
    kept = np.asarray(inpainting.image_processor.apply_overlay(mask, photo, Image.fromarray(painted)))
    told(without=apart(painted, scenes[0], ~hole), painted=apart(kept, scenes[0], hole))
    assert (kept[~hole] == scenes[0][~hole]).all()
    assert apart(painted, scenes[0], ~hole) > 0.2  # the autoencoder redraws what is outside, too
    assert (kept[hole] == painted[hole]).all() and apart(kept, scenes[0], hole) > 5


def test_the_simple_algorithm_does_not_remove_what_an_inpainting_checkpoint_removes(
    inpainting: Any, regular: Any, scenes: list[np.ndarray]
) -> None:
    """An empty prompt over a ball: how far from what is behind it, and how much of its colour is left."""
    hole = box()
    balls = [with_ball(scene) for scene in scenes]
    found = {}
    for label, pipeline in (("inpainting", inpainting), ("regular", regular)):
        for strength in (0.8, 1.0):
            painted = paint(pipeline, "", balls, hole, guidance_scale=1, strength=strength)
            off = np.mean([apart(after, scene, hole) for after, scene in zip(painted, scenes, strict=True)])
            left = np.mean([colour(after, "red") for after in painted])
            found[f"{label} {strength}"] = off, left
    told(before=np.mean([apart(*pair, hole) for pair in zip(balls, scenes, strict=True)]), **found)
    assert found["inpainting 1.0"][0] < 0.7 * found["regular 1.0"][0]
    assert found["inpainting 0.8"][1] < found["regular 0.8"][1] - 10
