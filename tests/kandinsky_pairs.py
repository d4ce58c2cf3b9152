"""Kandinsky's pipelines, ours and the reference's, over the same checkpoints and compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from pipeline_pairs import PROMPT, as_tensor, compare_runs, generators, load, mask, photo
from tiny_checkpoints_kandinsky import WIDTH
from torch import Tensor

import retouch

DECODERS = {
    "text2image": "KandinskyV22Pipeline",
    "image2image": "KandinskyV22Img2ImgPipeline",
    "inpaint": "KandinskyV22InpaintPipeline",
}
COMBINED = {
    "text2image": "KandinskyV22CombinedPipeline",
    "image2image": "KandinskyV22Img2ImgCombinedPipeline",
    "inpaint": "KandinskyV22InpaintCombinedPipeline",
}
PRIOR = "KandinskyV22PriorPipeline"
FEW = {"num_inference_steps": 3, "output_type": "np"}


def loaded(library: Any, name: str, folder: Path) -> Any:
    """One pipeline for all tests of a worker; what the reference warns of is not our matter."""
    with warnings.catch_warnings():
        if library is diffusers:
            warnings.simplefilter("ignore")
        return load(library, name, folder)


@dataclass(frozen=True)
class KandinskyPair:
    """Two pipelines that get the same call."""

    ours: Any
    theirs: Any

    def compare(self, *, seeds: int | list[int] = 7, wrap: Any = None, **arguments: Any) -> Any:
        """Fail unless the results, and the random numbers used up, are the same; returns ours."""
        arguments = {"num_inference_steps": 4, **arguments}

        def results(pipeline: Any, generator: Any) -> Any:
            output = pipeline(**arguments, **(wrap() if wrap else {}), generator=generator)
            return output.images if hasattr(output, "images") else output.to_tuple()

        return compare_runs(results, self.ours, self.theirs, seeds)

    def scheduled(self, name: str, **options: Any) -> KandinskyPair:
        """The same parts with another scheduler for the decoder."""
        pipelines = []
        for library, pipeline in ((retouch, self.ours), (diffusers, self.theirs)):
            config = dict(pipeline.scheduler.config)
            if library is diffusers and name != "DDPMScheduler":
                del config["variance_type"]  # or it hands the variance to a scheduler that knows none
            scheduler = getattr(library, name).from_config(config, **options)
            made = type(pipeline)(**{**pipeline.components, "scheduler": scheduler})
            made.set_progress_bar_config(disable=True)
            pipelines.append(made)
        return KandinskyPair(*pipelines)


def decoder_pair(folder: Path, task: str) -> KandinskyPair:
    return KandinskyPair(*(loaded(library, DECODERS[task], folder) for library in (retouch, diffusers)))


def prior_pair(folder: Path) -> KandinskyPair:
    return KandinskyPair(*(loaded(library, PRIOR, folder) for library in (retouch, diffusers)))


def combined_pair(decoder: Path, prior: Path, task: str) -> KandinskyPair:
    """Made of the two, as loading by the card makes it."""
    pipelines = []
    for library in (retouch, diffusers):
        first, second = loaded(library, DECODERS[task], decoder), loaded(library, PRIOR, prior)
        parts = {f"prior_{name}": part for name, part in second.components.items()}
        whole = getattr(library, COMBINED[task])(**first.components, **parts)
        whole.set_progress_bar_config(disable=True)
        pipelines.append(whole)
    return KandinskyPair(*pipelines)


def embeds(rows: int = 1, seed: int = 0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        "image_embeds": torch.randn(rows, WIDTH, generator=source),
        "negative_image_embeds": torch.randn(rows, WIDTH, generator=source),
    }


def task_inputs(task: str) -> dict[str, Any]:
    """The pictures that a task needs, at a size that both libraries work at."""
    size = {"height": 64, "width": 64}
    if task == "text2image":
        return size
    if task == "image2image":
        return {"image": photo(), "strength": 0.6, **size}
    return {"image": photo(), "mask_image": mask(), **size}


def prompts(task: str) -> dict[str, Any]:
    return {"prompt": PROMPT, "prior_num_inference_steps": 3, **task_inputs(task)}


def made(pipeline: Any, seeds: int | list[int] = 7, **arguments: Any) -> Tensor:
    return as_tensor(pipeline(**{**FEW, **arguments}, generator=generators(seeds)).images)
