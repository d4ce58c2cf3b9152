"""Photo-true editing: give a photo and a mask, get the same photo back, changed only where the mask is white.

An editor keeps a model loaded. A verb cuts a crop around each hole of the mask, has the pipeline paint it at
the model's own size, and joins it back. The cost depends on the holes, not on the size of the photo.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from time import perf_counter
from typing import Any

import torch

from retouch.checkpoints.profile import Profile
from retouch.editing.cache import PipelineCache
from retouch.editing.models import chosen
from retouch.editing.options import Options, margins
from retouch.editing.painting import Job, paint
from retouch.editing.result import Edit, mean_of_known
from retouch.editing.settings import scheduler_named
from retouch.editing.speed import preset
from retouch.errors import InputError, errors_about
from retouch.images.crops import crops
from retouch.images.photo import Photo
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.progress import Recording

_THINGS = "object, thing, person, animal, text, watermark, logo"


class Editor:
    """The verbs on one loaded pipeline. `retouch.load` makes it."""

    def __init__(self, pipeline: Pipeline, model: str = "", *, show_progress: bool = True) -> None:
        self.pipeline, self.model, self.show_progress = pipeline, model, show_progress
        self.profile = Profile.of(pipeline.name_or_path)
        self._cache = PipelineCache()
        self._rounded: tuple[Any, Pipeline] | None = None  # a UNet, and the pipeline with it in 8 bits

    def __repr__(self) -> str:
        return f"Editor({self.model!r}, {type(self.pipeline).__name__} on {self.pipeline.device})"

    def inpaint(self, photo: Any, mask: Any, prompt: str = "", **options: Any) -> Edit:
        """Paint `prompt` where the mask is white. Options: see retouch.editing.options.Options."""
        wanted = self._options("inpaint", {}, prompt=prompt, **options)
        return self._edit("inpaint", Photo.open(photo), mask, wanted)

    def erase(self, photo: Any, mask: Any, **options: Any) -> Edit:
        """Remove what is under the mask, and a little more, by continuing the surroundings."""
        defaults = {"prompt": "", "negative_prompt": _THINGS, "grow": 8, "fill": "telea"}
        if self.pipeline.keeps_original:
            # A regular model sees nothing of the hole except its starting point: leave it some of the fill.
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
        """Continue the photo beyond its edges, by pixels or to an aspect such as "16:9".

        The model starts from a fill by patches. Nothing inside the photo changes without a `feather`.
        """
        if options.get("invert"):
            raise InputError(
                "invert=True has no meaning in outpaint, which repaints what is new. Leave it out.",
                parameter="invert",
            )
        defaults = {"fill": "patches", "context": "100%", "feather": 0}
        wanted = self._options("outpaint", defaults, prompt=prompt, **options)
        opened = Photo.open(photo)
        sides = margins(opened.size, (left, top, right, bottom), aspect)
        canvas, added = opened.extended(*sides)
        return self._edit("outpaint", canvas, added, wanted, {"margins": list(sides)})

    def _options(self, verb: str, defaults: dict[str, Any], **given: Any) -> Options:
        """Return checked options: the caller's, then the speed preset's, the checkpoint's and the verb's.

        Warn if the checkpoint knows few things by name and the prompt names none of them.
        """
        speed = preset(given.pop("speed", None), self.pipeline)
        options = Options.of(**{**defaults, **self.profile.defaults_of(verb), **speed, **given})
        if options.source is not None:
            raise InputError(
                "source says what a fill without a model may copy, and a model paints here. Leave it out, or "
                "use retouch.erase or retouch.outpaint without a model.",
                parameter="source",
            )
        prompt, names = options.prompt, self.profile.names
        if prompt.strip() and names and not self.profile.named_in(prompt):
            near, name = self.profile.near(prompt), self.model or self.pipeline.name_or_path
            warnings.warn(
                f"{prompt!r} names nothing that this checkpoint knows, so it may paint anything. It knows "
                f"{len(names)} things by name (`retouch models show {name}` lists them)"
                f"{'; near: ' + ', '.join(near) if near else ''}. Name one of them, or choose a model that "
                "was trained on words of every kind, such as sd15-inpaint.",
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
        images, seams, details = [], [], []
        for variation, each in enumerate(seeds):
            painted = [paint(job, index, variation, each) for index in range(len(job.crops))]
            with job.timed("finish"):
                images.append(photo.with_painted(patch for patch, _, _ in painted))
            seams.append(mean_of_known([seam for _, seam, _ in painted]))
            details.append(mean_of_known([detail for _, _, detail in painted]))
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
            details,
        )

    def _job(self, photo: Photo, mask: Any, options: Options) -> Job:
        pipeline = self._pipeline_for(options)
        recording = Recording.wanted(options.record)
        working = options.size or pipeline.default_size
        read = options.read_mask(mask, photo.size)
        parts = crops(
            read,
            working,
            context=options.context,
            feather=options.feather or 0,
            factor=pipeline.layout.multiple,
            square=self.profile.square_crops,
        )
        return Job(photo, read, parts, options, working, pipeline, self._cache, recording)

    def _pipeline_for(self, options: Options) -> Pipeline:
        """Return a pipeline with this edit's scheduler; the editor's own stays unchanged."""
        changes = {}
        if options.scheduler is not None:
            changes["scheduler"] = scheduler_named(options.scheduler, self.pipeline.scheduler)
        pipeline = self._int8() if options.int8 else self.pipeline
        changed = type(pipeline).from_pipe(pipeline, **changes)
        hidden = options.progress is not None or not self.show_progress
        changed.set_progress_bar_config(disable=hidden, leave=False)
        return changed

    def _int8(self) -> Pipeline:
        """Return the pipeline with its denoiser in 8 bits, made on first use and again for another one."""
        denoiser = self.pipeline.part(self.pipeline.family.denoiser)
        if (
            self.pipeline.why_not_int8 is not None
            or self._rounded is None
            or self._rounded[0] is not denoiser
        ):
            self._rounded = denoiser, self.pipeline.with_int8()
        return self._rounded[1]


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    progress: bool = True,
    **options: Any,
) -> Editor:
    """Return an editor with a checkpoint: a folder, a hub repository, a single file or a short name.

    `model`: None takes the one that RETOUCH_MODEL names, or the built-in one. `dtype`: None takes bfloat16
    where this machine computes it natively and float32 elsewhere.
    """
    from retouch.editing.loading import load_pipeline

    name = chosen(model)
    pipeline = load_pipeline(name, device=device, dtype=dtype, **options)
    with errors_about("model"):  # its profile
        return Editor(pipeline, str(name), show_progress=progress)
