"""Photo-true editing: give a photo and a hole, get the same photo back with only the hole changed.

An editor keeps a model loaded. A verb cuts a crop around each part of the hole, has the pipeline paint it at
the size that the model likes, and joins it back. Cost follows the hole, not the photo.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from numbers import Integral
from time import perf_counter
from typing import Any

import torch

from retouch.checkpoints.profile import Profile
from retouch.editing.cache import PipelineCache
from retouch.editing.models import chosen
from retouch.editing.options import Options
from retouch.editing.painting import Job, paint
from retouch.editing.result import Edit
from retouch.editing.settings import scheduler_named
from retouch.editing.speed import settings_of
from retouch.errors import InputError
from retouch.images.crops import crops
from retouch.images.mask import Mask
from retouch.images.photo import Photo
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.progress import Recording

_THINGS = "object, thing, person, animal, text, watermark, logo"


class Editor:
    """The verbs over one loaded pipeline. Made by `retouch.load`."""

    def __init__(self, pipeline: Pipeline, model: str = "", *, show_progress: bool = True) -> None:
        self.pipeline, self.model, self.show_progress = pipeline, model, show_progress
        self.profile = Profile.of(pipeline.name_or_path)
        self._cache = PipelineCache()
        self._rounded: tuple[Any, Pipeline] | None = None  # a UNet, and the pipeline with it in 8 bits

    def __repr__(self) -> str:
        return f"Editor({self.model!r}, {type(self.pipeline).__name__} on {self.pipeline.device})"

    def inpaint(self, photo: Any, mask: Any, prompt: str = "", **options: Any) -> Edit:
        """Paint `prompt` into the hole. Options: see retouch.editing.options.Options."""
        wanted = self._options("inpaint", {}, prompt=prompt, **options)
        return self._edit("inpaint", Photo.open(photo), mask, wanted)

    def erase(self, photo: Any, mask: Any, **options: Any) -> Edit:
        """Take away what is under the mask: a little more than it, continued from around it."""
        defaults = {"prompt": "", "negative_prompt": _THINGS, "grow": 8, "fill": "telea"}
        if self.pipeline.keeps_original:
            # A regular model sees nothing of the hole but what it starts from: leave it some of the fill.
            defaults["strength"] = 0.85
        return self._edit("erase", Photo.open(photo), mask, self._options("erase", defaults, **options))

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
        if options.get("invert"):
            raise InputError("invert=True has no meaning here: what is new is repainted. Leave it out.")
        defaults = {"fill": "blur", "context": "100%"}
        wanted = self._options("outpaint", defaults, prompt=prompt, **options)
        opened = Photo.open(photo)
        margins = _margins(opened.size, (left, top, right, bottom), aspect)
        canvas, added = opened.extended(*margins)
        return self._edit("outpaint", canvas, added, wanted, {"margins": list(margins)})

    def _options(self, verb: str, defaults: dict[str, Any], **given: Any) -> Options:
        """The caller's options, else those of the speed, the checkpoint and the verb; with a word on the
        prompt.
        """
        speed = settings_of(given.pop("speed", None), self.pipeline)
        options = Options.of(**{**defaults, **self.profile.defaults_of(verb), **speed, **given})
        prompt, names = options.prompt, self.profile.names
        if prompt.strip() and names and not self.profile.named_in(prompt):
            near, name = self.profile.near(prompt), self.model or self.pipeline.name_or_path
            warnings.warn(
                f"{prompt!r} names nothing that this checkpoint knows, so it may paint anything. It knows "
                f"{len(names)} things by name (`retouch models show {name}` lists them)"
                f"{'; near: ' + ', '.join(near) if near else ''}. Name one of them, or take a checkpoint "
                f'that was trained on words of every kind: model="sd15-inpaint".',
                stacklevel=3,
            )
        return options

    def _edit(
        self, verb: str, photo: Photo, mask: Any, options: Options, extra: dict[str, Any] | None = None
    ) -> Edit:
        start = perf_counter()
        job = self._job(photo, mask, options)
        job.timings["prepare"] = perf_counter() - start
        seed = int(torch.randint(2**31, ()).item()) if options.seed is None else int(options.seed)
        seeds = [seed + variation for variation in range(options.variations)]
        images, seams = [], []
        for variation, each in enumerate(seeds):
            painted = [paint(job, index, variation, each) for index in range(len(job.crops))]
            with job.timed("finish"):
                images.append(photo.with_painted(patch for patch, _ in painted))
            known = [seam for _, seam in painted if seam == seam]
            seams.append(sum(known) / len(known) if known else float("nan"))
        settings = {
            "verb": verb,
            "version": version("retouch"),
            "model": self.model,
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            **options.to_dict(),
            **(extra or {}),
            "seed": seed,
        }
        return Edit(
            images,
            seeds,
            seams,
            job.mask.image(),
            job.crops,
            job.mask.coverage,
            settings,
            job.timings,
            photo,
            job.recording,
        )

    def _job(self, photo: Photo, mask: Any, options: Options) -> Job:
        pipeline = self._front(options)
        recording = Recording.wanted(options.record)
        working = options.size or pipeline.default_size
        read = Mask.of_photo(
            mask,
            photo.size,
            mask_mode=options.mask_mode,
            invert=options.invert,
            grow=options.grow,
            fit_mask=options.fit_mask,
        )
        parts = crops(
            read,
            working,
            context=options.context,
            feather=options.feather or 0,
            factor=pipeline.layout.multiple,
            square=self.profile.square_crops,
        )
        return Job(photo, read, parts, options, working, pipeline, self._cache, recording)

    def _front(self, options: Options) -> Pipeline:
        """The pipeline with this edit's scheduler; the editor's own is not touched."""
        changes = {}
        if options.scheduler is not None:
            changes["scheduler"] = scheduler_named(options.scheduler, self.pipeline.scheduler)
        pipeline = self._int8() if options.int8 else self.pipeline
        front = type(pipeline).from_pipe(pipeline, **changes)
        hidden = options.progress is not None or not self.show_progress
        front.set_progress_bar_config(disable=hidden, leave=False)
        return front

    def _int8(self) -> Pipeline:
        """The pipeline in 8 bits, made when it is first asked for."""
        denoiser = self.pipeline.part(self.pipeline.family.denoiser)
        if (
            self.pipeline.why_not_int8 is not None
            or self._rounded is None
            or self._rounded[0] is not denoiser
        ):
            self._rounded = denoiser, self.pipeline.with_int8()
        return self._rounded[1]


def _margins(
    size: tuple[int, int], given: tuple[int, int, int, int], aspect: str | float | None
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    if not all(isinstance(margin, Integral) and margin >= 0 for margin in given):
        raise InputError(
            f"left, top, right, bottom = {given}: margins are whole pixels of 0 or more. To make the photo "
            f"smaller, crop it with image.crop."
        )
    left, top, right, bottom = (int(margin) for margin in given)
    if aspect is not None:
        if any(given):
            raise InputError(
                "Both an aspect and margins were given; each says how far to go. Give one of them."
            )
        wanted = _ratio(aspect)
        width, height = size
        wider, taller = round(height * wanted) - width, round(width / wanted) - height
        if wider > 0:
            left, right = wider // 2, wider - wider // 2
        elif taller > 0:
            top, bottom = taller // 2, taller - taller // 2
    if not any((left, top, right, bottom)):
        raise InputError(
            "There is nothing to add: no margin was given, or the photo has that aspect. Give left, right, "
            'top or bottom in pixels, or another aspect such as "16:9".'
        )
    return left, top, right, bottom


def _ratio(aspect: str | float) -> float:
    try:
        if isinstance(aspect, str) and ":" in aspect:
            across, down = aspect.split(":")
            ratio = float(across) / float(down)
        else:
            ratio = float(aspect)
        if not 0.01 < ratio < 100:
            raise ValueError
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(
            f'aspect={aspect!r} is not understood. Give "16:9", "4:3" or a number such as 1.5.'
        ) from None
    return ratio


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    progress: bool = True,
    **options: Any,
) -> Editor:
    """An editor over a checkpoint: a folder, a hub repository, a single file or a short name.

    `model`: None takes the one that RETOUCH_MODEL names, or the built-in one. `dtype`: None takes bfloat16
    where this machine computes it natively and float32 elsewhere.
    """
    from retouch.editing.loading import load_pipeline

    name = chosen(model)
    pipeline = load_pipeline(name, device=device, dtype=dtype, **options)
    return Editor(pipeline, str(name), show_progress=progress)
