"""The options that several commands share, in groups, and their keywords in the library.

An option that is not given is not passed on: the verbs have their own defaults, which differ in places.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retouch.editing.models import MODELS

PAINTING, MASK, HOLE, MODEL, OUTPUT = (
    "Painting",
    "Reading the mask",
    "The hole and its surroundings",
    "Model",
    "Output",
)

# Options whose keyword in the library has another name.
KEYWORDS = {
    "negative": "negative_prompt",
    "guidance": "guidance_scale",
    "pickled": "use_safetensors",
    "force": "force_download",
}

# Keywords that are False where their option is given.
OPPOSITES = ("use_safetensors",)

PhotoArgument = Annotated[str, typer.Argument(metavar="PHOTO", help="A picture file or its URL.")]
MaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="MASK",
        help="White is repainted: a picture file or its URL; or a box as left,top,right,bottom.",
    ),
]

MaskMode = Literal["auto", "luma", "alpha"]
Join = Literal["plain", "match", "poisson"]
Speed = Literal["exact", "balanced", "fast"]
Fill = Literal["original", "patches", "blur", "telea", "ns", "noise", "color"]


def option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


JsonFlag = Annotated[bool, option(OUTPUT, "--json", help="Print one JSON object instead of text.")]
OverwriteFlag = Annotated[
    bool, option(OUTPUT, "--overwrite/--no-overwrite", help="Replace a file that is there.")
]
OpenFlag = Annotated[bool, option(OUTPUT, "--open", help="Open the result in the picture viewer.")]
PickledFlag = Annotated[
    bool, option(MODEL, "--pickled", help="Read pickled weights (.ckpt) too; tensors only, no code is run.")
]


def short_names(incomplete: str) -> list[tuple[str, str]]:
    """Return the short names of models that begin so, with their notes, for completion."""
    return [(name, entry.note) for name, entry in MODELS.items() if name.startswith(incomplete)]


@dataclass(frozen=True)
class Painting:
    """Options of painting."""

    negative: Annotated[
        str | None, option(PAINTING, "--negative", "-n", help="Things that should not be in the picture.")
    ] = None
    steps: Annotated[
        int | None, option(PAINTING, min=1, help="Steps that run.", show_default="30, or the checkpoint's")
    ] = None
    strength: Annotated[
        float | None,
        option(PAINTING, help="Below 1 starts from what is in the hole.", show_default="1"),
    ] = None
    guidance: Annotated[
        float | None,
        option(PAINTING, help="How closely the prompt is followed.", show_default="7.5, or the checkpoint's"),
    ] = None
    scheduler: Annotated[
        str | None,
        option(
            PAINTING,
            help='Such as "euler a", "dpm++ 2m karras", "ddim" or "lcm".',
            show_default="the checkpoint's own",
        ),
    ] = None
    seed: Annotated[
        int | None,
        option(
            PAINTING,
            help="The same seed, the same picture; variation i has seed + i.",
            show_default="random; without a model 0",
        ),
    ] = None
    variations: Annotated[
        int | None, option(PAINTING, min=1, help="Number of pictures.", show_default="1")
    ] = None

    speed: Annotated[
        Speed | None,
        option(
            PAINTING,
            envvar="RETOUCH_SPEED",
            help="Preset of steps, sampler and the options below: quicker, for a slightly different picture.",
            show_default="exact",
        ),
    ] = None
    reuse_deep_features: Annotated[
        int | None,
        option(PAINTING, min=1, help="Run the UNet's deep levels in every n-th step.", show_default="1"),
    ] = None
    guidance_interval: Annotated[
        str | None,
        option(
            PAINTING,
            metavar="LOW,HIGH",
            help="Guide only between these noise levels, 0 to 1.",
            show_default="always",
        ),
    ] = None
    int8: Annotated[
        bool | None,
        option(PAINTING, "--int8/--no-int8", help="Multiply in 8 bits (CPU).", show_default="no"),
    ] = None


@dataclass(frozen=True)
class Reading:
    """Options of reading a mask."""

    mask_mode: Annotated[
        MaskMode | None,
        option(MASK, help="Read the brightness or the alpha of a mask that has both.", show_default="auto"),
    ] = None
    invert: Annotated[bool, option(MASK, "--invert", help="The mask marks what to keep.")] = False
    fit_mask: Annotated[
        bool, option(MASK, "--fit-mask", help="Stretch a mask of another size over the photo.")
    ] = False


@dataclass(frozen=True)
class Hole:
    """Options of the repainted area and its surroundings."""

    grow: Annotated[
        float | None,
        option(
            HOLE,
            help="Widen the mask by this number of pixels.",
            show_default="0, erase 8; without a model 1 to 8",
        ),
    ] = None
    feather: Annotated[
        float | None,
        option(
            HOLE,
            help="Pixels over which old and new mix.",
            show_default="a fiftieth of the crop; without a model 0",
        ),
    ] = None
    context: Annotated[
        str | None,
        option(
            HOLE,
            help="Surroundings that the model sees: pixels, or per cent of the hole.",
            show_default="50%, outpaint 100%, or the checkpoint's",
        ),
    ] = None
    size: Annotated[
        int | None,
        option(HOLE, help="Side that a crop is painted at.", show_default="the checkpoint's"),
    ] = None
    one_pass: Annotated[
        bool | None,
        option(
            HOLE,
            "--one-pass/--two-passes",
            help="Paint a crop much larger than that a second time, at its own size.",
            show_default="two, or the checkpoint's",
        ),
    ] = None
    fill: Annotated[
        Fill | None,
        option(
            HOLE,
            help="Content of the hole: without a model the result, with one what it starts from.",
            show_default="original, erase telea, outpaint blur; without a model patches",
        ),
    ] = None
    matte: Annotated[
        bool | None,
        option(
            HOLE,
            "--matte/--no-matte",
            help="Lay only the painted thing on a fill by patches of the photo.",
            show_default="no, or the checkpoint's",
        ),
    ] = None
    source: Annotated[
        str | None,
        option(
            HOLE,
            metavar="MASK",
            help="What a fill by patches may copy: a file, white where it may, or a box.",
            show_default="anything outside the hole",
        ),
    ] = None
    join: Annotated[
        Join | None,
        option(HOLE, help="How the result is joined to the photo.", show_default="match"),
    ] = None


@dataclass(frozen=True)
class Model:
    """Options of the checkpoint and the device."""

    model: Annotated[
        str | None,
        option(
            MODEL,
            "--model",
            "-m",
            envvar="RETOUCH_MODEL",
            help="A short name (see `retouch models`), a folder, a file of weights (.onnx too), a hub id.",
            show_default="builtin; erase, and outpaint without a prompt, need none",
            autocompletion=short_names,
        ),
    ] = None
    variant: Annotated[
        str | None, option(MODEL, help="The kind of weights where a checkpoint has several, such as fp16.")
    ] = None
    device: Annotated[
        str | None, option(MODEL, help="Such as cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None
    dtype: Annotated[
        str | None,
        option(MODEL, help="float32, bfloat16 or float16.", show_default="what the device computes fastest"),
    ] = None
    pickled: PickledFlag = False

    def loading(self) -> dict[str, Any]:
        """Return the keywords of `retouch.load`."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.variant is not None:
            options["variant"] = self.variant
        return options | ({"use_safetensors": False} if self.pickled else {})


@dataclass(frozen=True)
class Output:
    """Options of the results and of what is printed."""

    output: Annotated[
        Path | None,
        option(
            OUTPUT,
            "--output",
            "-o",
            metavar="OUT",
            help="The result; with several variations OUT-1, OUT-2...",
            show_default="PHOTO-<command>.png, here",
        ),
    ] = None
    overwrite: OverwriteFlag = False
    quality: Annotated[
        int | None,
        option(OUTPUT, min=1, max=100, help="Quality of JPEG, WebP and AVIF.", show_default="95"),
    ] = None
    gif: Annotated[
        Path | None, option(OUTPUT, metavar="FILE", help="The process as an animated GIF (or .webp).")
    ] = None
    preview: Annotated[
        bool,
        option(OUTPUT, "--preview/--no-preview", help="Show the picture in terminals that can."),
    ] = True
    open: OpenFlag = False
    json: JsonFlag = False


def given(*groups: Any) -> dict[str, Any]:
    """Return the options that were given, as keywords of the verbs."""
    keywords = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                keywords[KEYWORDS.get(field.name, field.name)] = value
    if "context" in keywords:
        keywords["context"] = as_context(keywords["context"])
    if "guidance_interval" in keywords:
        keywords["guidance_interval"] = as_numbers(keywords["guidance_interval"])
    return keywords


def as_context(text: str) -> str | float:
    """Return pixels as a number, and any other text unchanged for the library to check."""
    try:
        return float(text)
    except ValueError:
        return text


def as_numbers(text: str) -> str | tuple[float, ...]:
    """Return numbers with commas between them as a tuple, and other text for the library to check."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def flag_of(keyword: str) -> str:
    """Return the option that stands for a keyword of the verbs."""
    names = {value: key for key, value in KEYWORDS.items()}
    return "--" + names.get(keyword, keyword).replace("_", "-")
