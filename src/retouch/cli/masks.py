"""`retouch mask`: make a mask for a photo from shapes, a colour, its transparency or the object in a box."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli.files import check_targets, default_name, written
from retouch.cli.options import OUTPUT, JsonFlag, OverwriteFlag, PhotoArgument, option
from retouch.cli.say import answer

if TYPE_CHECKING:
    from PIL import Image

    from retouch.images.mask import Mask
    from retouch.images.photo import Photo

MARK, EDGE = "Marking (several add up)", "The edge"

_RED = (255, 40, 40)


def mask(
    photo: PhotoArgument,
    *,
    box: Annotated[
        list[str] | None, option(MARK, metavar="L,T,R,B", help="Left, top, right, bottom in pixels.")
    ] = None,
    ellipse: Annotated[
        list[str] | None, option(MARK, metavar="L,T,R,B", help="The ellipse that fills such a box.")
    ] = None,
    polygon: Annotated[
        list[str] | None, option(MARK, metavar='"X,Y X,Y X,Y ..."', help="Three corners or more.")
    ] = None,
    color: Annotated[
        list[str] | None,
        option(MARK, metavar="COLOUR", help='Everything of a colour, such as "#30a0ff" or red.'),
    ] = None,
    tolerance: Annotated[
        float, option(MARK, min=0, max=255, help="Distance from --color in each channel, 0 to 255.")
    ] = 32,
    alpha: Annotated[bool, option(MARK, "--alpha", help="The transparent part of the photo.")] = False,
    grabcut: Annotated[
        list[str] | None,
        option(MARK, metavar="X,Y,W,H", help="The object in a box drawn loosely around it (GrabCut)."),
    ] = None,
    grow: Annotated[float, option(EDGE, help="Widen by this many pixels; narrow if negative.")] = 0,
    feather: Annotated[float, option(EDGE, min=0, help="Fade out over this many pixels.")] = 0,
    invert: Annotated[bool, option(EDGE, "--invert", help="Mark everything else instead.")] = False,
    output: Annotated[
        Path | None, option(OUTPUT, "--output", "-o", metavar="OUT", show_default="PHOTO-mask.png, here")
    ] = None,
    preview: Annotated[
        Path | None, option(OUTPUT, metavar="FILE", help="The photo with the mask in red over it.")
    ] = None,
    overwrite: OverwriteFlag = False,
    json: JsonFlag = False,
) -> None:
    """Make a mask from shapes, a colour, or the object in a box."""
    boxes = [_numbers(text, 4, "--box") for text in box or ()]
    ellipses = [_numbers(text, 4, "--ellipse") for text in ellipse or ()]
    objects = [_numbers(text, 4, "--grabcut") for text in grabcut or ()]
    polygons = [[_numbers(pair, 2, "--polygon") for pair in text.split()] for text in polygon or ()]
    if not (boxes or ellipses or objects or polygons or color or alpha):
        raise typer.BadParameter(
            "Nothing is marked. Give --box, --ellipse, --polygon, --color, --alpha or --grabcut."
        )
    target = output or default_name(photo, "mask")
    targets = [target] if preview is None else [target, preview]
    check_targets(targets, overwrite=overwrite)

    from retouch.editing.options import Options
    from retouch.images import selection
    from retouch.images.mask_reading import read_photo_mask
    from retouch.images.photo import Photo, check_holds

    Options.of(grow=grow, feather=feather)
    for path in targets:
        check_holds(path, "L" if path == target else "RGB")
    opened = Photo.open(photo)
    parts: list[Any] = [*boxes, *polygons]
    parts += [selection.ellipse(each, opened.size) for each in ellipses]
    if objects or color:
        pixels = opened.rgb
        parts += [selection.of_color(pixels, each, tolerance) for each in color or ()]
        parts += [selection.object_in(pixels, each) for each in objects]
    if alpha:
        parts.append(selection.transparent(opened.image))
    marked = read_photo_mask(parts, opened.size, invert=invert, grow=grow)
    grey = (marked.softened(feather) if feather else marked).image()
    with written(target) as temporary:
        grey.save(temporary)
    if preview is not None:
        with written(preview) as temporary:
            _overlay(opened, grey).save(temporary)
    _tell(target, preview, marked, as_json=json)


def _numbers(text: str, count: int, name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
        numbers = tuple(int(number) if number.is_integer() else number for number in numbers)
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(abs(number) < 1e6 for number in numbers):
        raise typer.BadParameter(
            f"{name} {text!r} is not {count} numbers with commas between, such as "
            f"{','.join(map(str, (40, 30, 200, 160)[:count]))}."
        )
    return numbers


def _overlay(photo: Photo, grey: Image.Image) -> Image.Image:
    """Return the photo with the mask in red over it."""
    from PIL import Image

    share = grey.point([round(0.55 * level) for level in range(256)])
    return Image.composite(Image.new("RGB", photo.size, _RED), Image.fromarray(photo.rgb), share)


def _tell(target: Path, preview: Path | None, marked: Mask, *, as_json: bool) -> None:
    if as_json:
        answer(
            {
                "output": str(target),
                "preview": None if preview is None else str(preview),
                "width": marked.width,
                "height": marked.height,
                "coverage": marked.coverage,
                "box": list(marked.box),
            }
        )
        return
    left, top, right, bottom = marked.box
    typer.echo(
        f"{target}  {100 * marked.coverage:.2g} % of {marked.width}x{marked.height} is marked, within "
        f"{left},{top},{right},{bottom}"
    )
    if preview is not None:
        typer.echo(f"{preview}  the photo with the mask over it")
