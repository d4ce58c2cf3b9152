"""`retouch inpaint`, `erase` and `outpaint`: an edit from files to files."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.files import (
    check_animation_name,
    check_quality,
    check_targets,
    default_name,
    series,
    written,
)
from retouch.cli.options import (
    Hole,
    MaskArgument,
    Model,
    Output,
    Painting,
    PhotoArgument,
    Reading,
    given,
    option,
)
from retouch.cli.say import answer, complain, megabytes
from retouch.editing.models import DEFAULT, named, notice
from retouch.errors import InputError

if TYPE_CHECKING:
    from retouch.editing.result import Edit

# Given an editor, an eraser or the module `filling`; photo, mask and options.
Verb = Callable[[Any, Any, Any, dict[str, Any]], "Edit"]

CANVAS = "The larger canvas"

PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint.")]
Left = Annotated[int, option(CANVAS, min=0, help="Pixels to add at the left.")]
Right = Annotated[int, option(CANVAS, min=0, help="Pixels to add at the right.")]
Top = Annotated[int, option(CANVAS, min=0, help="Pixels to add at the top.")]
Bottom = Annotated[int, option(CANVAS, min=0, help="Pixels to add at the bottom.")]
Aspect = Annotated[
    str | None, option(CANVAS, metavar="W:H", help='Extend the photo to an aspect such as "16:9".')
]


def inpaint(
    photo: PhotoArgument,
    mask: MaskArgument,
    prompt: PromptArgument = "",
    *,
    painting: Painting,
    reading: Reading,
    hole: Hole,
    model: Model,
    output: Output,
) -> None:
    """Paint what a prompt says where the mask is white."""

    def paint(editor: Any, picture: Any, where: Any, options: dict[str, Any]) -> Edit:
        return editor.inpaint(picture, where, prompt, **options)

    run("inpaint", photo, mask, paint, given(painting, reading, hole), model, output)


def erase(
    photo: PhotoArgument,
    mask: MaskArgument,
    *,
    painting: Painting,
    reading: Reading,
    hole: Hole,
    model: Model,
    output: Output,
) -> None:
    """Remove what is under the mask.

    Patches of the photo fill it, or a model that you name paints it.
    """

    def paint(editor: Any, picture: Any, where: Any, options: dict[str, Any]) -> Edit:
        return editor.erase(picture, where, **options)

    run(
        "erase",
        photo,
        mask,
        paint,
        given(painting, reading, hole),
        model,
        output,
        fills=named(model.model) is None,
    )


def outpaint(
    photo: PhotoArgument,
    prompt: PromptArgument = "",
    *,
    left: Left = 0,
    right: Right = 0,
    top: Top = 0,
    bottom: Bottom = 0,
    aspect: Aspect = None,
    painting: Painting,
    hole: Hole,
    model: Model,
    output: Output,
) -> None:
    """Continue a photo beyond its edges.

    Without a prompt and a model, patches of the photo continue it.
    """
    margins = {"left": left, "right": right, "top": top, "bottom": bottom}
    if any(margins.values()) == (aspect is not None):
        raise typer.BadParameter("Give either --left, --right, --top, --bottom (some of them), or --aspect.")

    fills = named(model.model) is None and not prompt.strip()

    def paint(editor: Any, picture: Any, where: Any, options: dict[str, Any]) -> Edit:
        words = () if fills else (prompt,)
        return editor.outpaint(picture, *words, **margins, aspect=aspect, **options)

    run(
        *("outpaint", photo, None, paint, given(painting, hole), model, output),
        fills=fills,
        takes_prompt=bool(prompt.strip()),
    )


def model_or_builtin(model: str | None) -> str:
    """Return the model that was named, or the built-in one with a note on stderr."""
    if model:
        return model
    complain(notice("--model sd15-inpaint"))
    return DEFAULT


def as_mask(text: str) -> str | tuple[float, ...]:
    """Return four numbers as a box, and any other text as the path or URL that it is."""
    number = r"\s*-?\d+(?:\.\d+)?\s*"
    if re.fullmatch(rf"{number}(?:,{number}){{3}}", text):
        return tuple(float(part) for part in text.split(","))
    return text


def run(
    verb: str,
    photo: str,
    mask: str | None,
    paint: Verb,
    options: dict[str, Any],
    model: Model,
    output: Output,
    *,
    fills: bool = False,
    takes_prompt: bool = False,
) -> None:
    """Check, load, paint, save and report: in this order, so that a typing error costs no time.

    `fills`: no model is loaded; patches of the photo fill the hole. `takes_prompt`: the caller gave one.
    """
    from retouch.editing.erasers import load_eraser, names_eraser, refusal

    erases = not fills and names_eraser(model.model)
    if erases and (verb == "inpaint" or takes_prompt):
        raise refusal(named(model.model), verb if verb == "inpaint" else f"{verb} with a prompt")
    if (fills or erases) and output.gif:
        raise InputError(
            "--gif shows the steps of a diffusion model, and "
            f"{'no model is named' if fills else 'a network for erasing has none'}. Name one with --model, "
            "or leave out --gif.",
            parameter="gif",
        )
    if fills and (model.variant or model.pickled):
        raise InputError(
            "It says how to read a model's weights, and no model is named. Name one with --model, or leave "
            "it out.",
            parameter="variant" if model.variant else "use_safetensors",
        )
    source = options.get("source")
    if source is not None:
        options["source"] = as_mask(source)
    targets = series(output.output or default_name(photo, verb), options.get("variations", 1))
    check_targets([*targets, *([output.gif] if output.gif else [])], overwrite=output.overwrite)
    check_animation_name(output.gif)
    check_quality(targets[0], output.quality)
    picture, where = _inputs(photo, mask, options, model, targets)

    from retouch.cli.progress import StepBar

    start = time.perf_counter()
    watched: dict[str, Any] = {}
    editor: Any
    if fills:
        from retouch.editing import filling

        editor = filling
    elif erases:
        editor = load_eraser(str(named(model.model)), **model.loading())
    else:
        from retouch.editing.editor import load

        editor = load(model_or_builtin(model.model), progress=False, **model.loading())
        watched["record"] = output.gif is not None
    if (fills or erases) and options.get("speed") == os.environ.get("RETOUCH_SPEED"):
        options.pop("speed", None)  # it is meant for diffusion models; these have one speed
    loaded = time.perf_counter() - start
    with StepBar(preview=output.preview and not (fills or erases)) as bar:
        edit = paint(editor, picture, where, options | watched | {"progress": bar.update})
        bar.finish(edit.image, edit.crop)
    inputs = {"photo": photo, "mask": mask, "source": source}
    sources = {name: _name_of(given) for name, given in inputs.items() if given is not None}
    edit = dataclasses.replace(
        edit, settings={**edit.settings, **sources}, timings={"load": loaded, **edit.timings}
    )
    paths = [
        edit.photo.save(edit.images[index], path, text=edit.text(index), quality=output.quality)
        for index, path in enumerate(targets)
    ]
    if output.gif:
        _save_animation(edit.recording, output.gif)
    _tell(edit, paths, output)
    if output.open:
        typer.launch(str(paths[0]))


def _inputs(
    photo: str, mask: str | None, options: dict[str, Any], model: Model, targets: list[Path]
) -> tuple[Any, Any]:
    """Read photo and mask, and check everything that can be checked before a model is loaded."""
    from retouch.editing.models import resolve
    from retouch.editing.options import Options
    from retouch.images.files import load_image
    from retouch.images.mask_reading import read_photo_mask
    from retouch.images.photo import Photo, check_holds

    Options.of(**options)
    if name := named(model.model):
        resolve(name)
    picture = Photo.open(photo)
    for target in targets:
        check_holds(target, picture.image.mode)
    if mask is None:
        return picture, None
    where: Any = as_mask(mask)
    if isinstance(where, str):
        try:
            where = load_image(where, lambda opened: opened)
        except InputError as error:
            raise InputError(str(error), parameter="mask") from error
    reading = ("mask_mode", "invert", "grow", "fit_mask")
    read_photo_mask(where, picture.size, **{name: options[name] for name in reading if name in options})
    return picture, where


def _name_of(source: str) -> str:
    """Return the name of a source for the settings: a box, or a file's name without folders or URL keys."""
    if isinstance(as_mask(source), tuple):
        return source
    return "data.png" if source.startswith("data:") else Path(source.split("?")[0]).name


def _save_animation(recording: Any, target: Path) -> None:
    with written(target) as temporary:
        (recording.save_gif if target.suffix.lower() == ".gif" else recording.save_webp)(temporary)


def _tell(edit: Edit, paths: list[Path], output: Output) -> None:
    """Report the result, for people or for programs."""
    if output.json:
        answer(
            {
                "outputs": [str(path) for path in paths],
                "gif": None if output.gif is None else str(output.gif),
                "width": edit.image.width,
                "height": edit.image.height,
                "mode": edit.image.mode,
                "seeds": list(edit.seeds),
                "seams": list(edit.seams),
                "details": list(edit.details),
                "coverage": edit.coverage,
                "crops": [list(crop.box) for crop in edit.crops],
                "timings": dict(edit.timings),
                "settings": dict(edit.settings),
            }
        )
        return
    for path, seed, seam, detail in zip(paths, edit.seeds, edit.seams, edit.details, strict=True):
        size = megabytes(path.stat().st_size)
        typer.echo(f"{path}  {size}, seed {seed}, seam {seam:.2f}, detail {detail:.2f}")
    if output.gif:
        typer.echo(f"{output.gif}  {megabytes(output.gif.stat().st_size)}")
    parts = "1 crop" if len(edit.crops) == 1 else f"{len(edit.crops)} crops"
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in edit.timings.items())
    typer.echo(f"{100 * edit.coverage:.2g} % of the photo repainted in {parts} ({seconds})")
