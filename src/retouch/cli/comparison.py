"""`retouch compare`: one photo and mask with several checkpoints, samplers or settings, as one picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.files import check_targets, default_name, written
from retouch.cli.options import (
    MODEL,
    OUTPUT,
    JsonFlag,
    MaskArgument,
    Model,
    OpenFlag,
    OverwriteFlag,
    PhotoArgument,
    PickledFlag,
    option,
    short_names,
)
from retouch.cli.say import answer, is_terminal
from retouch.cli.verbs import as_mask, model_or_builtin

if TYPE_CHECKING:
    from PIL import Image

    from retouch.editing.compare import Comparison
    from retouch.images.mask import Mask
    from retouch.images.photo import Photo

WHAT = "The comparison"

_CROPPED = 512  # longest side of a photo for models that work on a crop around the mask

# Settings by their names here: the argument of a pipeline call, and the type of its values.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "steps": ("num_inference_steps", int),
    "strength": ("strength", float),
    "guidance": ("guidance_scale", float),
    "negative": ("negative_prompt", str),
    "crop": ("padding_mask_crop", int),
    "scheduler": ("", str),
}


def compare(
    photo: PhotoArgument,
    mask: MaskArgument,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="A row for each.")] = None,
    *,
    model: Annotated[
        list[str] | None,
        option(
            MODEL,
            "--model",
            "-m",
            help="A column for each: short names, folders, files of weights, hub ids.",
            show_default="RETOUCH_MODEL, or builtin",
            autocompletion=short_names,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        option(
            WHAT,
            metavar="NAME=A,B,C",
            help=f"A column for each value of one of {', '.join(_SETTINGS)}; several combine.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        option(WHAT, "--set", metavar="NAME=VALUE", help="One of these settings, the same for all."),
    ] = None,
    seed: Annotated[list[int] | None, option(WHAT, help="A row for each.", show_default="0")] = None,
    size: Annotated[
        int | None,
        option(
            WHAT,
            min=64,
            help="Longest side that the photo is scaled down to.",
            show_default="the checkpoint's",
        ),
    ] = None,
    variant: Annotated[str | None, option(MODEL, help="The kind of weights, such as fp16.")] = None,
    device: Annotated[str | None, option(MODEL, show_default="the best there is")] = None,
    dtype: Annotated[str | None, option(MODEL, show_default="what the device computes fastest")] = None,
    pickled: PickledFlag = False,
    output: Annotated[
        Path | None,
        option(OUTPUT, "--output", "-o", metavar="SHEET", show_default="PHOTO-compare.png, here"),
    ] = None,
    table: Annotated[Path | None, option(OUTPUT, metavar="FILE", help="The figures as Markdown.")] = None,
    overwrite: OverwriteFlag = False,
    open: OpenFlag = False,
    json: JsonFlag = False,
) -> None:
    """Compare checkpoints and settings on one photo and mask."""
    varied = {name: values for name, values in (_parsed(text, "--vary") for text in vary or ())}
    fixed = {name: values for name, values in (_parsed(text, "--set") for text in setting or ())}
    several = [name for name, values in fixed.items() if len(values) > 1]
    if several:
        raise typer.BadParameter(f"--set takes one value for {several[0]}; --vary takes several.")
    target = output or default_name(photo, "compare")
    check_targets([target] if table is None else [target, table], overwrite=overwrite)

    from retouch.editing.compare import compare as compared
    from retouch.images.mask_reading import read_photo_mask
    from retouch.images.photo import Photo, check_holds

    check_holds(target, "RGB")
    picture = Photo.open(photo)
    read = read_photo_mask(as_mask(mask), picture.size)
    names = model or [model_or_builtin(os.environ.get("RETOUCH_MODEL"))]
    samplers = varied.pop("scheduler", fixed.pop("scheduler", [None]))
    where = Model(None, variant, device, dtype, pickled)
    pipelines, side = _pipelines(names, samplers, where)
    comparison = compared(
        *_scaled(picture, read, size or side),
        prompts or [""],
        pipelines,
        seed or [0],
        vary={_SETTINGS[name][0]: values for name, values in varied.items()},
        **{_SETTINGS[name][0]: values[0] for name, values in fixed.items()},
    )
    with written(target) as temporary:
        comparison.save(temporary)
    if table is not None:
        with written(table) as temporary:
            temporary.write_text(comparison.table + "\n", encoding="utf-8")
    _tell(comparison, target, table, as_json=json)
    if open:
        typer.launch(str(target))


def _parsed(text: str, name: str) -> tuple[str, list[Any]]:
    """Return NAME=A,B,C as the name and the values in their type."""
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or key not in _SETTINGS:
        raise typer.BadParameter(f"{name} {text!r} is not NAME=VALUE with one of {', '.join(_SETTINGS)}.")
    read = _SETTINGS[key][1]
    try:
        return key, [read(value.strip()) for value in values.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{name} {text!r}: {key} takes {read.__name__} values.") from None


def _pipelines(names: list[str], samplers: list[str | None], where: Model) -> tuple[dict[str, Any], int]:
    """Load each checkpoint with each sampler, by label; return them with the largest of their sizes."""
    from retouch.checkpoints.profile import Profile
    from retouch.editing.loading import load_pipeline
    from retouch.editing.models import resolve
    from retouch.editing.settings import scheduler_named

    for name in names:
        resolve(name)
    columns, side = {}, 0
    labels = [Path(name).name for name in names]
    if len(set(labels)) < len(labels):
        labels = names
    for name, label in zip(names, labels, strict=True):
        pipeline = load_pipeline(name, **where.loading())
        pipeline.set_progress_bar_config(disable=not is_terminal(), leave=False)
        # A model that works on a crop around the mask can take a larger photo.
        crops = Profile.of(pipeline.name_or_path).square_crops
        side = max(side, _CROPPED if crops else pipeline.default_size)
        for sampler in samplers:
            changed = pipeline
            if sampler is not None:
                scheduler = scheduler_named(sampler, pipeline.scheduler)
                changed = type(pipeline).from_pipe(pipeline, scheduler=scheduler)
            parts = ((label, len(names)), (sampler, len(samplers)))
            columns["\n".join(str(part) for part, count in parts if count > 1)] = changed
    return columns, side


def _scaled(photo: Photo, mask: Mask, side: int) -> tuple[Image.Image, Mask]:
    """Return photo and mask with a longest side of at most `side`."""
    from PIL import Image

    picture = Image.fromarray(photo.rgb)
    factor = side / max(picture.size)
    if factor >= 1:
        return picture, mask
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS), mask.resized(*size)


def _tell(comparison: Comparison, target: Path, table: Path | None, *, as_json: bool) -> None:
    if as_json:
        figures = ("column", "prompt", "seed", "seconds", "changed_inside", "changed_outside", "seam")
        answer(
            {
                "output": str(target),
                "table": None if table is None else str(table),
                "results": [
                    {name: getattr(result, name) for name in figures} for result in comparison.results
                ],
            }
        )
        return
    typer.echo(comparison.table)
    typer.echo(str(target))
    if table is not None:
        typer.echo(str(table))
