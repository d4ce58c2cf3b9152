"""One crop of an edit: preparing it for the pipeline, painting it, and joining it to its surroundings.

A crop that is much larger than the model's size is painted twice: coarsely as a whole, then at its own size
in overlapping windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from retouch.editing.cache import PipelineCache
from retouch.editing.laying import Grounds, laid
from retouch.editing.memory import with_fallbacks, with_tiled_vae
from retouch.editing.options import Options, Update
from retouch.editing.settings import scheduled_steps
from retouch.errors import Cancelled
from retouch.images.crops import Crop
from retouch.images.detail import detail_score
from retouch.images.fill import fill_hole
from retouch.images.join import join
from retouch.images.mask import Mask
from retouch.images.patch_fill_numpy import has_patch
from retouch.images.photo import Patch, Photo
from retouch.images.seam import seam_score
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.progress import Recording, preview as preview_of

_SHRINKS_TOO_MUCH = 1 / 1.5**2  # a crop that keeps a smaller part of its pixels is painted a second time
_LARGEST = 4.0  # times the working size in pixels; larger crops are scaled down to it in the second pass
_REFINE = 0.5  # strength of the second pass at most, and its share of the steps


@dataclass(frozen=True)
class Job:
    """One verb on one photo: the values that all its crops and variations share."""

    photo: Photo
    mask: Mask
    crops: list[Crop]
    options: Options
    working_size: int
    pipeline: Pipeline
    cache: PipelineCache
    recording: Recording | None = None
    timings: dict[str, float] = field(default_factory=dict)
    unprompted: dict[Any, np.ndarray] = field(default_factory=dict)  # see _painted_unprompted

    @cached_property
    def grounds(self) -> Grounds:
        """What a painted thing is laid on."""
        return Grounds(self.photo, self.mask)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time that a block takes to an entry of the timings."""
        start = perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + perf_counter() - start


@dataclass(frozen=True)
class _Painting:
    """One crop of one variation."""

    job: Job
    pipeline: Pipeline
    crop: Crop
    given: np.ndarray  # the photo there
    mask: Mask  # of the crop
    feather: float  # in pixels of the photo
    reach: float  # how far from the hole the model paints, in pixels of the photo
    seed: int
    index: int
    variation: int


def paint(job: Job, index: int, variation: int, seed: int) -> tuple[Patch, float, float]:
    """Paint and join one crop; return it, the pixels that belong into the photo, its seam and its detail."""
    crop, layout, options = job.crops[index], job.pipeline.layout, job.options
    with job.timed("prepare"):
        given = job.photo.pixels(crop.box)
        mask = job.mask.cropped(crop.box)
        # By default a fiftieth of the crop, which is one or two latents.
        feather = max(1.0, 0.02 * max(crop.size)) if options.feather is None else options.feather
        # The model paints whole latents.
        reach = feather / 2 + layout.stride * max(crop.size) / max(crop.width, crop.height)

    def attempt(pipeline: Pipeline, share: float = 1.0) -> tuple[Image.Image, np.ndarray | None]:
        multiple = layout.multiple
        width, height = (
            max(multiple, int(side * share) // multiple * multiple) for side in (crop.width, crop.height)
        )
        smaller = replace(crop, width=width, height=height)
        painting = _Painting(job, pipeline, smaller, given, mask, feather, reach, seed, index, variation)
        picture = _painted(painting, refine=share == 1)
        wanted = options.matte and options.prompt.strip()
        return picture, _painted_unprompted(painting) if wanted else None

    def tiled() -> Pipeline:
        return with_tiled_vae(job.pipeline, max(crop.width, crop.height) // 2)

    with job.timed("paint"), job.pipeline.keeping_memory():
        picture, without = with_fallbacks(
            [
                ("", lambda: attempt(job.pipeline)),
                ("with the VAE in tiles", lambda: attempt(tiled())),
                ("with a smaller crop", lambda: attempt(tiled(), 0.75)),
                ("with a crop of half the size", lambda: attempt(tiled(), 0.5)),
            ]
        )
    with job.timed("join"):
        painted = np.asarray(picture.resize(crop.size, Image.Resampling.LANCZOS))
        joined = join(given, painted, mask, feather=feather, method=options.join, reach=reach)
        edge = mask.softened(feather)  # its middle, where old and new count alike
    if without is not None:
        with job.timed("matte"):
            on_ground = laid(joined, picture, without, crop.box, job.grounds, feather)
        if on_ground is not None:
            joined, edge = on_ground, mask
    changed = (joined != given).any(axis=-1) | mask.hard
    with job.timed("finish"):
        seam = seam_score(Image.fromarray(joined), edge)
        return (crop.box, joined, changed), seam, detail_score(joined, mask)


def _painted(painting: _Painting, refine: bool) -> Image.Image:
    """Return a crop as the pipeline paints it, at the size that it was painted at last."""
    job, crop, given = painting.job, painting.crop, painting.given
    options, size, own = job.options, (crop.width, crop.height), crop.size
    picture = np.asarray(Image.fromarray(given).resize(size, Image.Resampling.LANCZOS))
    if options.fill != "original":
        inside = painting.mask.touched(*size).inside
        # A small photo may have no place to copy from; the model needs no more than a start.
        fill = "blur" if options.fill == "patches" and not has_patch(~inside) else options.fill
        picture = fill_hole(picture, inside, fill, seed=painting.seed)
    shrinks = size[0] * size[1] < _SHRINKS_TOO_MUCH * own[0] * own[1]
    refine = refine and not options.one_pass and shrinks
    second = math.ceil(_REFINE * options.steps) if refine else 0
    report = _Report(painting, options.steps + second)
    result = _call(painting, picture, options.strength, options.steps, report)
    if not refine:
        return result
    coarse = np.asarray(result.resize(own, Image.Resampling.LANCZOS))
    joined = join(given, coarse, painting.mask, feather=painting.feather, reach=painting.reach)
    fine = Image.fromarray(joined).resize(_fine_size(own, job), Image.Resampling.LANCZOS)
    strength = min(_REFINE, options.strength)
    return _call(painting, np.asarray(fine), strength, second, report, tile_size=job.working_size)


def _painted_unprompted(painting: _Painting) -> np.ndarray:
    """Return a crop with its hole painted for an empty prompt, in one step, at the working size.

    One step from noise gives about the mean of all that may be there, which is smooth: what the painting for
    the prompt has in addition is the thing. It is the same for all variations.
    """
    job, crop = painting.job, painting.crop
    kept, key = job.unprompted, (painting.index, crop.width, crop.height)
    if key not in kept:
        options = replace(
            job.options, prompt="", negative_prompt=None, guidance_scale=1.0, guidance_interval=None
        )
        unprompted = replace(job, options=options)
        size = crop.width, crop.height
        picture = np.asarray(Image.fromarray(painting.given).resize(size, Image.Resampling.LANCZOS))
        kept[key] = np.asarray(_call(replace(painting, job=unprompted, seed=0), picture, 1.0, 1))
    return kept[key]


def _call(
    painting: _Painting,
    pixels: np.ndarray,
    strength: float,
    steps: int,
    report: _Report | None = None,
    **extra: Any,
) -> Image.Image:
    options, pipeline = painting.job.options, painting.pipeline
    height, width = pixels.shape[:2]
    # Whole latents, so that no corner of what the mask covers is left over.
    mask = painting.mask.softened(painting.feather).resized(width, height).touching(pipeline.layout.stride)
    arguments: dict[str, Any] = {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "image": Image.fromarray(pixels),
        "mask_image": mask,
        "width": width,
        "height": height,
        "strength": strength,
        "num_inference_steps": scheduled_steps(steps, strength),
        "guidance_scale": options.guidance_scale,
        "guidance_interval": options.guidance_interval,
        "reuse_deep_features": options.reuse_deep_features,
        "generator": torch.Generator().manual_seed(painting.seed),  # on the CPU: the same on any device
        "record": painting.job.recording if report is not None and report.is_first else None,
        **extra,
    }
    with pipeline.start(**arguments, cache=painting.job.cache) as run:
        for progress in run:
            if report is not None:
                report.step(run, progress, steps)
        if report is not None:
            report.end_pass(steps)
        image: Image.Image = run.result().images[0]
    return image


def _fine_size(own: tuple[int, int], job: Job) -> tuple[int, int]:
    """Return the crop's own size in multiples of the latents', scaled down where it is over the limit."""
    factor = job.pipeline.layout.multiple
    scale = min(1.0, (_LARGEST * job.working_size**2 / (own[0] * own[1])) ** 0.5)
    width, height = (max(factor, round(side * scale / factor) * factor) for side in own)
    return width, height


@dataclass
class _Report:
    """Calls the edit's `progress` function at each step, and stops the edit if that returns False."""

    painting: _Painting
    steps: int
    before: int = 0  # steps of the passes that are done
    evaluations: int = 0

    @property
    def is_first(self) -> bool:
        """True in the edit's first pass, the one to record."""
        return self.painting.index == self.painting.variation == self.before == 0

    def step(self, run: Any, progress: Any, steps: int) -> None:
        """Report one more evaluation. Some schedulers take several for a step, or one more at the start."""
        self.evaluations += 1
        painting, callback = self.painting, self.painting.job.options.progress
        if callback is None:
            return
        done = self.before + math.ceil(self.evaluations * steps / run.num_timesteps)

        def preview() -> Image.Image:
            with torch.no_grad():
                pixels = preview_of(run.pipeline, progress.latents)
            return run.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

        count, variations = len(painting.job.crops), painting.job.options.variations
        update = Update(
            done, self.steps, painting.index + 1, count, painting.variation + 1, variations, preview
        )
        if callback(update) is False:
            raise Cancelled(f"The edit was cancelled at step {done} of {self.steps}; nothing was changed.")

    def end_pass(self, steps: int) -> None:
        """Count a finished pass."""
        self.before, self.evaluations = self.before + steps, 0
