"""The same picture and mask through several pipelines or settings, as one labelled picture and one table.

Columns are the pipelines and the settings in `vary`, rows are prompts and seeds. The table holds for each
result the time, the change inside and outside the mask, and the visibility of the seam.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from retouch.checkpoints.profile import Profile
from retouch.errors import InputError
from retouch.images.crops import context_in_pixels
from retouch.images.files import load_image
from retouch.images.mask import Mask
from retouch.images.mask_reading import read_masks
from retouch.images.seam import change, seam_score
from retouch.pipelines.pipeline import Pipeline

Model = Pipeline | str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """One picture of a comparison, with its figures."""

    column: str
    prompt: str
    seed: int
    image: Image.Image
    seconds: float
    changed_inside: float  # mean change of a pixel, in levels of 0 to 255
    changed_outside: float
    seam: float  # 1 is none; see retouch.images.seam


@dataclass(frozen=True)
class Comparison:
    """All results, `image` as one labelled picture, and `table` as text."""

    results: Sequence[Result]
    image: Image.Image

    @property
    def table(self) -> str:
        """Figures as a Markdown table."""
        lines = ["| | prompt | seed | seconds | change inside | change outside | seam |", "|---" * 7 + "|"]
        for result in self.results:
            figures = (
                f"{value:.2f}"
                for value in (result.seconds, result.changed_inside, result.changed_outside, result.seam)
            )
            lines.append(f"| {result.column} | {result.prompt} | {result.seed} | {' | '.join(figures)} |")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture."""
        self.image.save(path)
        return Path(path)

    def _repr_png_(self) -> Any:
        return self.image._repr_png_()


def compare(
    image: Any,
    mask: Any,
    prompts: str | Sequence[str],
    pipelines: Model | Sequence[Model] | Mapping[str, Model] | None = None,
    seeds: int | Sequence[int] = 0,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> Comparison:
    """Inpaint one photo and mask with each pipeline and each setting, from the same noise.

    `vary={"strength": [0.6, 0.8, 1.0]}` makes a column for each value (and each combination of several);
    `settings` go to every call. `pipelines` are loaded ones or names as the verbs take them, and may have
    labels: {"simple": ..., "inpainting": ...}; None takes the model that the verbs would take. Settings that
    are not given are the checkpoint's defaults, where it has some.
    """
    picture = load_image(image)
    read = mask if isinstance(mask, Mask) else read_masks(load_image(mask), "mask")[0]
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    columns = _columns(_loaded(pipelines), vary or {})
    if not prompts or not seeds or not columns:
        raise InputError(
            "One of prompts, seeds, pipelines and the lists in vary is empty. A comparison needs at least "
            'one of each; give prompts=[""] for an empty prompt.',
            parameter="prompts" if not prompts else "seeds" if not seeds else "pipelines",
        )
    rows = list(itertools.product(prompts, seeds))
    results = [
        _one(label, pipeline, picture, read, prompt, seed, {**_defaults(pipeline, read), **settings, **extra})
        for prompt, seed in rows
        for label, pipeline, extra in columns
    ]
    labels = [f"{prompt or '(empty prompt)'}\nseed {seed}" for prompt, seed in rows]
    return Comparison(results, _sheet(picture, read, [label for label, *_ in columns], labels, results))


def _loaded(given: Any) -> Any:
    """Load the models that are given by name."""
    from retouch.editing.loading import load_pipeline

    if isinstance(given, Mapping):
        return {label: _loaded(model) for label, model in given.items()}
    if isinstance(given, list | tuple):
        return [_loaded(model) for model in given]
    return given if isinstance(given, Pipeline) else load_pipeline(given)


def _defaults(pipeline: Pipeline, mask: Mask) -> dict[str, Any]:
    """Return a checkpoint's default settings as arguments of a pipeline call."""
    own = Profile.of(pipeline.name_or_path).defaults_of("inpaint")
    names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale"}
    defaults = {names[name]: value for name, value in own.items() if name in names}
    if "context" in own and not mask.is_empty:
        left, top, right, bottom = mask.box
        longer = max(right - left, bottom - top)
        defaults["padding_mask_crop"] = round(context_in_pixels(own["context"], longer))
    return defaults


def _columns(pipelines: Any, vary: Mapping[str, Sequence[Any]]) -> list[tuple[str, Pipeline, dict[str, Any]]]:
    if isinstance(pipelines, Pipeline):
        named = {"": pipelines}
    elif isinstance(pipelines, Mapping):
        named = dict(pipelines)
    else:
        named = {f"{index + 1}: {_name(pipeline)}": pipeline for index, pipeline in enumerate(pipelines)}
    columns = []
    for name, pipeline in named.items():
        for values in itertools.product(*vary.values()):
            extra = dict(zip(vary, values, strict=True))
            parts = [name, *(f"{key} {value}" for key, value in extra.items())]
            columns.append(("\n".join(part for part in parts if part) or _name(pipeline), pipeline, extra))
    return columns


def _name(pipeline: Pipeline) -> str:
    return Path(pipeline.name_or_path).name or type(pipeline).__name__


def _one(
    column: str,
    pipeline: Pipeline,
    image: Image.Image,
    mask: Mask,
    prompt: str,
    seed: int,
    settings: Mapping[str, Any],
) -> Result:
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    painted = pipeline(prompt=prompt, image=image, mask_image=mask, generator=generator, **settings).images[0]
    seconds = time.perf_counter() - start
    same_size = painted if painted.size == image.size else painted.resize(image.size)
    inside, outside = change(image, same_size, mask)
    return Result(
        column.replace("\n", ", "),
        prompt,
        seed,
        painted,
        seconds,
        inside,
        outside,
        seam_score(same_size, mask),
    )


def _sheet(
    image: Image.Image,
    mask: Mask,
    columns: Sequence[str],
    rows: Sequence[str],
    results: Sequence[Result],
) -> Image.Image:
    """Draw the masked photo and a column of results for each pipeline, labels above and figures below."""
    side = 256
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    font, line, gap = ImageFont.load_default(size=13), 17, 8
    head = line * max(3, *(label.count("\n") + 1 for label in columns)) + gap
    cell = (size[0] + gap, size[1] + 2 * line + gap)
    page = Image.new("RGB", (gap + cell[0] * (len(columns) + 1), head + cell[1] * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    masked = Image.composite(Image.new("RGB", image.size, "white"), image, mask.image())

    def write(x: int, y: int, text: str) -> None:
        for index, part in enumerate(text.split("\n")):
            while part and draw.textlength(part, font) > size[0]:
                part = part[:-1]
            draw.text((x, y + index * line), part, fill="black", font=font)

    write(gap, gap // 2, "picture and mask")
    for index, label in enumerate(columns):
        write(gap + cell[0] * (index + 1), gap // 2, label)
    for row, label in enumerate(rows):
        y = head + cell[1] * row
        page.paste(masked.resize(size), (gap, y))
        write(gap, y + size[1] + 1, label)
        for column in range(len(columns)):
            result = results[row * len(columns) + column]
            x = gap + cell[0] * (column + 1)
            page.paste(result.image.resize(size), (x, y))
            figures = f"inside {result.changed_inside:.0f}  outside {result.changed_outside:.1f}"
            write(x, y + size[1] + 1, f"{figures}\nseam {result.seam:.2f}  {result.seconds:.1f} s")
    return page
