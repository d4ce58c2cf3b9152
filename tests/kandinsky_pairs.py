"""Kandinsky's pipelines, ours and the reference's, over the same checkpoints and compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from closeness import assert_close
from pipeline_pairs import PROMPT, as_tensor, generators, load, mask, photo
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

    def compare(
        self, *, seeds: int | list[int] = 7, tolerance: float = 1e-5, wrap: Any = None, **arguments: Any
    ) -> list[Tensor]:
        """Fail unless the results, and the random numbers used up, are the same; returns ours."""
        arguments = {"num_inference_steps": 4, **arguments}
        results, states = [], []
        for pipeline in (self.ours, self.theirs):
            generator = generators(seeds)
            extra = wrap() if wrap else {}
            with warnings.catch_warnings():
                if pipeline is self.theirs:
                    warnings.simplefilter("ignore")
                output = pipeline(**arguments, **extra, generator=generator)
            found = [output.images] if hasattr(output, "images") else [*output.to_tuple()]
            results.append([as_tensor(part) for part in found])
            listed = generator if isinstance(generator, list) else [generator]
            states.append([source.get_state() for source in listed])
        for mine, reference in zip(*results, strict=True):
            assert_close(mine, reference, tolerance)
        for mine, reference in zip(*states, strict=True):
            assert torch.equal(mine, reference), "not as many random numbers were drawn as by the reference"
        return results[0]

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
