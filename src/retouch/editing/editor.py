"""Photo-true editing: give a photo and a hole, get the same photo back with only the hole changed.

An editor keeps a model loaded. A verb cuts a crop around each part of the hole, has the pipeline paint it at
the size that the model likes, and joins it back. Cost follows the hole, not the photo.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from retouch.editing.cache import PipelineCache
from retouch.editing.memory import with_fallbacks
from retouch.editing.options import Options, Update
from retouch.editing.result import Edit
from retouch.editing.settings import scheduled_steps, scheduler_named
from retouch.errors import Cancelled, InputError
from retouch.images.fill import fill_hole
from retouch.images.holes import Crop, Hole, crops, read_hole
from retouch.images.join import feathered, join
from retouch.images.photo import Photo
from retouch.images.seam import seam_score
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.recording import linear_colours

# A crop that the working size would shrink below this share of its pixels is painted twice: coarsely as a
# whole, then at its own size in windows.
_SHRINKS_TOO_MUCH = 1 / 1.5
_LARGEST = 4.0  # working sizes in the second pass; what is larger is scaled down to it
_REFINE = 0.5  # strength of the second pass

_THINGS = "object, thing, person, animal, text, watermark, logo"


@dataclass(frozen=True)
class _Job:
    """One verb on one photo: what every crop and variation of it shares."""

    photo: Photo
    hole: Hole
    crops: list[Crop]
    options: Options
    working_size: int
    pipeline: Pipeline


class Editor:
    """The verbs over one loaded pipeline. Made by `retouch.load`."""

    def __init__(self, pipeline: Pipeline, model: str = "", *, show_progress: bool = True) -> None:
        self.pipeline, self.model, self.show_progress = pipeline, model, show_progress
        self._cache = PipelineCache()

    def __repr__(self) -> str:
        return f"Editor({self.model!r}, {type(self.pipeline).__name__} on {self.pipeline.device})"

    def inpaint(self, photo: Any, mask: Any, prompt: str = "", **options: Any) -> Edit:
        """Paint `prompt` into the hole. Options: see retouch.editing.options.Options."""
        return self._edit("inpaint", Photo.open(photo), mask, Options.of(prompt=prompt, **options))

    def erase(self, photo: Any, mask: Any, **options: Any) -> Edit:
        """Take away what is under the mask: a little more than it, continued from around it."""
        defaults = {"prompt": "", "negative_prompt": _THINGS, "grow": 8, "fill": "telea"}
        if self.pipeline.keeps_original:
            # A regular model sees nothing of the hole but what it starts from: leave it some of the fill.
            defaults["strength"] = 0.85
        return self._edit("erase", Photo.open(photo), mask, Options.of(**{**defaults, **options}))

    def outpaint(
        self,
        photo: Any,
        prompt: str = "",
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        aspect: str | float | None = None,
        **options: Any,
    ) -> Edit:
        """Continue the photo beyond its edges, by pixels or to an aspect such as "16:9"."""
        opened = Photo.open(photo)
        margins = _margins(opened.size, (left, top, right, bottom), aspect)
        canvas, hole = opened.extended(*margins)
        defaults = {"prompt": prompt, "fill": "blur", "context": "100%"}
        chosen = Options.of(**{**defaults, **options})
        return self._edit("outpaint", canvas, hole, chosen, {"margins": list(margins)})

    def _edit(
        self, verb: str, photo: Photo, mask: Any, options: Options, extra: dict[str, Any] | None = None
    ) -> Edit:
        timings: defaultdict[str, float] = defaultdict(float)
        with _timed(timings, "prepare"):
            hole = read_hole(
                mask,
                photo.size,
                mask_mode=options.mask_mode,
                invert=options.invert,
                grow=options.grow,
                fit_mask=options.fit_mask,
            )
            pipeline = self._front(options)
            working = options.size or pipeline.default_size
            parts = crops(hole, working, context=options.context, factor=pipeline.vae_scale_factor)
            job = _Job(photo, hole, parts, options, working, pipeline)
            seed = int(torch.randint(2**31, ()).item()) if options.seed is None else options.seed
        images, seams = [], []
        pixels = photo.rgb
        for variation in range(options.variations):
            painted = pixels.copy()
            for index in range(len(parts)):
                self._paint_crop(job, index, variation, seed + variation, painted, timings)
            with _timed(timings, "finish"):
                changed = (painted != pixels).any(axis=-1)
                images.append(photo.with_painted(painted, changed))
                seams.append(self._seam(job, painted))
        settings = {
            "verb": verb,
            "version": version("retouch"),
            "model": self.model,
            **options.to_dict(),
            **(extra or {}),
            "seed": seed,
        }
        return Edit(
            images,
            [seed + variation for variation in range(options.variations)],
            seams,
            hole.image(),
            parts,
            hole.coverage,
            settings,
            dict(timings),
            photo,
            options.record,
        )

    def _front(self, options: Options) -> Pipeline:
        """The pipeline with this edit's scheduler; the editor's own is not touched."""
        changes = {}
        if options.scheduler is not None:
            changes["scheduler"] = scheduler_named(options.scheduler, self.pipeline.scheduler)
        front = type(self.pipeline).from_pipe(self.pipeline, **changes)
        hidden = options.progress is not None or not self.show_progress
        front.set_progress_bar_config(disable=hidden, leave=False)
        return front

    def _paint_crop(
        self,
        job: _Job,
        index: int,
        variation: int,
        seed: int,
        photo: np.ndarray,
        timings: defaultdict[str, float],
    ) -> None:
        """Paint one crop into `photo`, in place."""

        def attempt(crop: Crop, tiled_vae: bool) -> tuple[Crop, np.ndarray]:
            report = _Report(job, index, variation)
            if not tiled_vae:
                return crop, self._painted(job, crop, seed, photo, report)
            job.pipeline.enable_vae_tiling()
            try:
                return crop, self._painted(job, crop, seed, photo, report)
            finally:
                job.pipeline.disable_vae_tiling()

        crop, factor = job.crops[index], job.pipeline.vae_scale_factor
        smaller = replace(
            crop,
            width=max(factor, crop.width * 3 // 4 // factor * factor),
            height=max(factor, crop.height * 3 // 4 // factor * factor),
        )
        with _timed(timings, "paint"):
            crop, painted = with_fallbacks(
                [
                    ("", lambda: attempt(crop, False)),
                    ("with the VAE in tiles", lambda: attempt(crop, True)),
                    ("with a smaller crop", lambda: attempt(smaller, True)),
                ]
            )
        with _timed(timings, "join"):
            values = crop.of(job.hole.values)
            crop.of(photo)[:] = join(
                crop.of(photo), painted, values, feather=_feather(job, crop), method=job.options.join
            )

    def _painted(self, job: _Job, crop: Crop, seed: int, photo: np.ndarray, report: _Report) -> np.ndarray:
        """What the pipeline makes of a crop, at the photo's resolution."""
        options, values = job.options, crop.of(job.hole.values)
        filled = fill_hole(crop.of(photo), values > 0, options.fill, seed=seed)
        picture = Image.fromarray(filled)
        soft = np.maximum(values, feathered(values >= 0.5, _feather(job, crop)))
        mask = Image.fromarray(np.rint(255 * soft).astype(np.uint8))
        report.passes = 2 if crop.scale**2 < _SHRINKS_TOO_MUCH else 1
        coarse = self._call(job, picture, mask, (crop.width, crop.height), options.strength, seed, report)
        if report.passes > 1:
            fine = _fine_size(crop, picture.size, job)
            coarse = self._call(
                job,
                coarse.resize(picture.size, Image.Resampling.LANCZOS),
                mask,
                fine,
                _REFINE,
                seed,
                report,
                tile_size=job.working_size,
            )
        return np.asarray(coarse.resize(picture.size, Image.Resampling.LANCZOS))

    def _call(
        self,
        job: _Job,
        picture: Image.Image,
        mask: Image.Image,
        size: tuple[int, int],
        strength: float,
        seed: int,
        report: _Report,
        **extra: Any,
    ) -> Image.Image:
        options, pipeline = job.options, job.pipeline
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        mask = mask.resize(size, Image.Resampling.BILINEAR)
        arguments: dict[str, Any] = {
            **self._cache.inputs(pipeline, options.prompt, options.negative_prompt, options.guidance_scale),
            "image": picture,
            "mask_image": mask,
            "width": size[0],
            "height": size[1],
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance_scale,
            "generator": torch.Generator().manual_seed(seed),  # on the CPU: the same noise on any device
            "record": options.record,
            **extra,
        }
        if "strength" in pipeline.task.arguments:
            arguments["strength"] = strength
            arguments["num_inference_steps"] = scheduled_steps(options.steps, strength)
        run = pipeline.start(**arguments)
        for progress in run:
            report.tell(run, progress)
        return run.result().images[0]

    def _seam(self, job: _Job, painted: np.ndarray) -> float:
        """Over all crops, each weighing as much as its edge is long."""
        scores = [
            seam_score(
                Image.fromarray(crop.of(painted)),
                Image.fromarray(255 * crop.of(job.hole.inside).astype(np.uint8)),
            )
            for crop in job.crops
        ]
        known = [score for score in scores if score == score]
        return float(np.mean(known)) if known else float("nan")


@dataclass
class _Report:
    """Tells an edit's listener of each step, and heeds its wish to stop."""

    job: _Job
    crop: int
    variation: int
    passes: int = 1
    done: int = 0

    def tell(self, run: Any, progress: Any) -> None:
        self.done += 1
        listener: Callable[[Update], Any] | None = self.job.options.progress
        if listener is None:
            return
        options, count = self.job.options, len(self.job.crops)
        steps = self.passes * run.num_timesteps

        def preview() -> Image.Image:
            with torch.no_grad():
                pixels = linear_colours(run.pipeline, progress.latents)
            return run.pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

        update = Update(
            self.done,
            steps,
            self.crop + 1,
            count,
            self.variation + 1,
            options.variations,
            preview,
        )
        if listener(update) is False:
            raise Cancelled(f"The edit was cancelled at step {self.done} of {steps}; nothing was changed.")


class _timed:
    """Adds the time that a block takes to an entry."""

    def __init__(self, timings: defaultdict[str, float], name: str) -> None:
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self.timings[self.name] += time.perf_counter() - self.start


def _feather(job: _Job, crop: Crop) -> float:
    """In pixels of the photo: as asked, or a fiftieth of the crop, which is one latent or two."""
    if job.options.feather is not None:
        return job.options.feather
    return max(1.0, 0.02 * max(crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]))


def _fine_size(crop: Crop, own: tuple[int, int], job: _Job) -> tuple[int, int]:
    """The crop's own size in multiples of the VAE's factor, or what is left of it under the limit."""
    factor = job.pipeline.vae_scale_factor
    scale = min(1.0, (_LARGEST * job.working_size**2 / (own[0] * own[1])) ** 0.5)
    width, height = (max(factor, round(side * scale / factor) * factor) for side in own)
    return width, height


def _margins(
    size: tuple[int, int], given: tuple[int, int, int, int], aspect: str | float | None
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    if any(margin < 0 for margin in given):
        raise InputError(
            f"left, top, right, bottom = {given}: a margin cannot be negative. Crop with image.crop."
        )
    if aspect is not None:
        if any(given):
            raise InputError(
                "Both an aspect and margins were given; each says how far to go. Give one of them."
            )
        wanted = _ratio(aspect)
        width, height = size
        wider, taller = round(height * wanted) - width, round(width / wanted) - height
        if wider > 0:
            given = (wider // 2, 0, wider - wider // 2, 0)
        elif taller > 0:
            given = (0, taller // 2, 0, taller - taller // 2)
    if not any(given):
        raise InputError(
            "There is nothing to add: no margin was given, or the photo has that aspect. Give left, right, "
            "top or "
            'bottom in pixels, or another aspect such as "16:9".'
        )
    return given


def _ratio(aspect: str | float) -> float:
    try:
        if isinstance(aspect, str) and ":" in aspect:
            across, down = aspect.split(":")
            ratio = float(across) / float(down)
        else:
            ratio = float(aspect)
        if not 0.01 < ratio < 100:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f'aspect={aspect!r} is not understood. Give "16:9", "4:3" or a number such as 1.5.'
        ) from None
    return ratio


def load(
    model: str | Path | None, *, device: Any = None, dtype: Any = None, progress: bool = True, **options: Any
) -> Editor:
    """An editor over a checkpoint: a folder, a hub repository, a single file or a short name.

    `dtype`: None takes bfloat16 where this machine computes it natively and float32 elsewhere.
    """
    from retouch.editing.loading import load_pipeline

    return Editor(
        load_pipeline(model, device=device, dtype=dtype, **options), str(model), show_progress=progress
    )
