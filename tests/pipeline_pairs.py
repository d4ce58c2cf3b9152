"""Our pipeline and the reference's over the same checkpoint, called with the same arguments and compared."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from closeness import assert_close
from PIL import Image
from torch import Generator, Tensor

import retouch

NAMES = {
    "text2image": "StableDiffusionPipeline",
    "image2image": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
XL_NAMES = {task: name.replace("Diffusion", "DiffusionXL") for task, name in NAMES.items()}
PROMPT = "a photo of a cat in the park"
# Each task with a regular checkpoint, and with one made for inpainting.
TASKS = [
    ("tiny_sd", "text2image"),
    ("tiny_sd", "image2image"),
    ("tiny_sd", "inpaint"),
    ("tiny_sd_inpaint", "inpaint"),
]
INPAINTERS = ["tiny_sd", "tiny_sd_inpaint", "tiny_sd2", "tiny_sd2_inpaint"]


@functools.cache
def load(library: Any, name: str, folder: Path) -> Any:
    """One pipeline for all tests of a worker, whose parts the others are made from."""
    pipeline = getattr(library, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Pair:
    """The two pipelines. `changed` gives a pair over the same models with other parts."""

    ours: Any
    theirs: Any
    task: str

    def changed(self, scheduler: str | None = None, task: str | None = None, **parts: Any) -> Pair:
        """With other parts in both, with the named scheduler, with other settings of the scheduler."""
        task = task or self.task
        options = {key: parts.pop(key) for key in list(parts) if key not in self.ours.component_names}
        pipelines = []
        for library, pipeline in ((retouch, self.ours), (diffusers, self.theirs)):
            components = {**pipeline.components, **parts}
            made = getattr(library, NAMES[task])(**components, requires_safety_checker=False)
            made.set_progress_bar_config(disable=True)
            if scheduler or options:  # afterwards, as users do: then nothing is repaired in it
                own = made.scheduler
                kind = getattr(library, scheduler) if scheduler else type(own)
                made.scheduler = kind.from_config(own.config, **options)
            pipelines.append(made)
        return replace(self, ours=pipelines[0], theirs=pipelines[1], task=task)

    def scheduled(self, scheduler: str, **options: Any) -> Pair:
        """With the named scheduler, whatever the family."""
        pipelines = []
        for library, pipeline in ((retouch, self.ours), (diffusers, self.theirs)):
            made = type(pipeline).from_pipe(pipeline)
            made.set_progress_bar_config(disable=True)
            made.scheduler = getattr(library, scheduler).from_config(pipeline.scheduler.config, **options)
            pipelines.append(made)
        return replace(self, ours=pipelines[0], theirs=pipelines[1])

    def compare(self, *, seeds: int | list[int] = 7, wrap: Any = None, **arguments: Any) -> Any:
        """Fail unless the pictures, and the random numbers used up, are the same; returns our pictures.

        `seeds` is one, or a list for a list of generators. `wrap` makes more arguments, once for each call.
        """
        # A small scale, because it multiplies the roundings of the two libraries' networks.
        defaults = {"output_type": "np", "num_inference_steps": 4, "guidance_scale": 3.0}
        arguments = {**defaults, **arguments}
        if not {"prompt", "prompt_embeds"} & arguments.keys():
            arguments["prompt"] = PROMPT

        def pictures(pipeline: Any, generator: Any) -> Any:
            return pipeline(**arguments, **(wrap() if wrap else {}), generator=generator).images

        return compare_runs(pictures, self.ours, self.theirs, seeds)


def compare_runs(run: Callable[[Any, Any], Any], ours: Any, theirs: Any, seeds: int | list[int] = 7) -> Any:
    """Fail unless `run(pipeline, generator)` gives the same for both and draws as much; returns our result.

    The reference runs a second time where its rounding has to be measured.
    """
    states: list[list[Tensor]] = []

    def result(pipeline: Any) -> Any:
        generator = generators(seeds)
        with warnings.catch_warnings():
            if pipeline is theirs:  # what it deprecates is not our matter
                warnings.simplefilter("ignore")
            made = run(pipeline, generator)
        listed = generator if isinstance(generator, list) else [generator]
        states.append([source.get_state() for source in listed])
        return made

    found = result(ours)
    assert_close(found, lambda: result(theirs))
    for mine, reference in zip(*states[:2], strict=True):
        assert torch.equal(mine, reference), "not as many random numbers were drawn as by the reference"
    return found


def pair(folder: Path, task: str) -> Pair:
    return Pair(load(retouch, NAMES[task], folder), load(diffusers, NAMES[task], folder), task)


def xl_pair(folder: Path, task: str) -> Pair:
    return Pair(load(retouch, XL_NAMES[task], folder), load(diffusers, XL_NAMES[task], folder), task)


def fresh(folder: Path, name: str, task: str) -> Pair:
    """Pipelines of their own, for what a test leaves behind."""
    made = []
    for library in (retouch, diffusers):
        pipeline = getattr(library, name).from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline)
    return Pair(*made, task)


def generators(seeds: int | list[int]) -> Generator | list[Generator]:
    if isinstance(seeds, int):
        return Generator().manual_seed(seeds)
    return [Generator().manual_seed(seed) for seed in seeds]


def as_tensor(images: Any) -> Tensor:
    """Pictures of any output type as one tensor, PIL ones with values from 0 to 1."""
    if isinstance(images, Tensor):
        return images
    if isinstance(images, list):
        images = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    return torch.from_numpy(images)


def photo(seed: int = 0, width: int = 64, height: int = 64) -> Image.Image:
    """A smooth picture with some noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((smooth + draw.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


def mask(box: tuple[int, int, int, int] = (10, 18, 41, 50), width: int = 64, height: int = 64) -> Image.Image:
    """White in the box (left, top, right, bottom)."""
    picture = Image.new("L", (width, height))
    picture.paste(255, box)
    return picture


def task_inputs(task: str) -> dict[str, Any]:
    """The pictures that a task needs, at the checkpoint's own size."""
    if task == "text2image":
        return {"height": 64, "width": 64}
    if task == "image2image":
        return {"image": photo()}
    return {"image": photo(), "mask_image": mask(), "height": 64, "width": 64}
