"""The options of a verb besides photo, mask and prompt: their defaults, and the only checks of them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, get_args

from PIL import Image

from retouch.editing.settings import sampler_of
from retouch.editing.speed import SPEEDS
from retouch.errors import InputError
from retouch.images.crops import context_in_pixels
from retouch.images.fill import Fill
from retouch.images.join import Method
from retouch.images.mask import Mask
from retouch.images.mask_reading import MaskMode, read_photo_mask

Margins = tuple[int, int, int, int]  # left, top, right, bottom

_CHOICES = {
    "join": get_args(Method),
    "fill": get_args(Fill),
    "mask_mode": get_args(MaskMode),
    "speed": tuple(SPEEDS),
}


@dataclass(frozen=True)
class Update:
    """Progress of an edit, given to its `progress` function; the edit stops if that returns False."""

    step: int
    steps: int  # of this crop of this variation
    crop: int
    crops: int
    variation: int
    variations: int
    preview: Callable[[], Image.Image]  # the crop as it is now, in rough colours


@dataclass(frozen=True)
class Options:
    """The options of inpaint, erase and outpaint."""

    prompt: str = ""
    negative_prompt: str | None = None
    steps: int = 30  # steps that run, at any strength
    strength: float = 1.0  # below 1 starts from what is in the hole
    guidance_scale: float = 7.5
    scheduler: str | None = None  # such as "dpm++ 2m karras"; None: the checkpoint's own
    seed: int | None = None  # variation i has seed + i; None: a random one, which the result names
    variations: int = 1
    context: float | str = "50%"  # surroundings to show the model, in pixels or per cent of the hole
    size: int | None = None  # side that a crop is worked on at; None: the checkpoint's default
    one_pass: bool = False  # no second pass at its own size for a crop that is much larger than that
    feather: float | None = None  # pixels over which old and new mix around the mask; None: from the crop
    join: Method = "match"
    fill: Fill = "original"
    matte: bool = False  # with a prompt: only the painted thing, laid on a fill by patches
    source: Any = None  # a mask of what may be copied, for fill="patches"; None: anything outside the hole
    mask_mode: MaskMode = "auto"
    invert: bool = False
    grow: float = 0
    fit_mask: bool = False
    speed: str = "exact"  # or "balanced" or "fast": presets of other options; see retouch.editing.speed
    guidance_interval: tuple[float, float] | None = None  # noise levels of 0 to 1 that are guided; None: all
    reuse_deep_features: int = 1  # the UNet's deep levels run in every n-th step
    int8: bool = False  # the UNet multiplies in 8 bits
    record: Any = None  # True, or a retouch.Recording: of the first crop of the first variation
    progress: Callable[[Update], Any] | None = None

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Return checked options; the error for an unknown name suggests the nearest known one."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
                raise InputError(f"There is no option {name!r}. {hint}", parameter=name)
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        for name in ("prompt", "negative_prompt", "scheduler"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name != "prompt"):
                raise InputError(f"{name} is a {type(value).__name__}; it takes one string.", parameter=name)
        smallest = {"steps": 1, "variations": 1, "seed": 0, "size": 64, "reuse_deep_features": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is None and name in ("seed", "size"):
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise InputError(
                    f"{name}={value!r} is not a whole number of {least} or more.", parameter=name
                )
        for name in ("strength", "guidance_scale", "feather", "grow"):
            value = getattr(self, name)
            if value is None and name == "feather":
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"{name}={value!r} is not a finite number.", parameter=name)
        if not 0 < self.strength <= 1:
            raise InputError(
                f"strength={self.strength} is outside 0 to 1 (0 excluded); 1 paints from noise.",
                parameter="strength",
            )
        if self.seed is not None and self.seed >= 2**63 - self.variations:
            raise InputError(
                f"seed={self.seed} is out of range; it takes a whole number below 2**63.", parameter="seed"
            )
        if self.feather is not None and self.feather < 0:
            raise InputError(
                f"feather={self.feather} is negative; give pixels, 0 for a hard edge.", parameter="feather"
            )
        for name in ("int8", "matte"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                default = "False" if name == "int8" else "the checkpoint's default"
                raise InputError(
                    f"{name}={value!r} is neither True nor False; leave it out for {default}.", parameter=name
                )
        for name, accepted in _CHOICES.items():
            value = getattr(self, name)
            if value not in accepted:
                raise InputError(
                    f"{name}={value!r} is unknown. Accepted are {', '.join(accepted)}. Give one of them, or "
                    f"leave it out{' (the variable RETOUCH_SPEED counts then)' if name == 'speed' else ''}.",
                    parameter=name,
                )
        context_in_pixels(self.context, 1)
        if self.guidance_interval is not None:
            from retouch.families.call import check_interval  # brings torch, which a fill does not need

            check_interval(self.guidance_interval)
        if self.scheduler is not None:
            sampler_of(self.scheduler)
        if self.progress is not None and not callable(self.progress):
            raise InputError(
                f"progress is a {type(self.progress).__name__}; it takes a function of an Update. Leave it "
                "out for a bar; an editor of retouch.load(..., progress=False) shows none.",
                parameter="progress",
            )

    def read_mask(self, mask: Any, size: tuple[int, int]) -> Mask:
        """Read the mask of a photo of `size` (width, height) as these options say."""
        return read_photo_mask(
            mask,
            size,
            mask_mode=self.mask_mode,
            invert=self.invert,
            grow=self.grow,
            fit_mask=self.fit_mask,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is needed to repeat the edit, as JSON can hold it."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        del values["record"], values["progress"], values["source"]
        return {key: _plain(value) for key, value in values.items()}


def margins(size: tuple[int, int], given: Margins, aspect: str | float | None) -> Margins:
    """Return the pixels that outpaint adds to a photo of `size` (width, height) on each side."""
    for name, margin in zip(("left", "top", "right", "bottom"), given, strict=True):
        if not isinstance(margin, Integral) or margin < 0:
            raise InputError(
                f"{name}={margin!r}: margins are whole pixels of 0 or more. To make the photo smaller, crop "
                "it with image.crop.",
                parameter=name,
            )
    left, top, right, bottom = (int(margin) for margin in given)
    if aspect is not None:
        if any(given):
            raise InputError(
                "Both an aspect and margins were given, and each decides the new size. Give one of them.",
                parameter="aspect",
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
            'top or bottom in pixels, or another aspect such as "16:9".',
            parameter="aspect",
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
            f'aspect={aspect!r} is not understood. Give "16:9", "4:3" or a number such as 1.5.',
            parameter="aspect",
        ) from None
    return ratio


def _plain(value: Any) -> Any:
    """Return numbers of numpy as Python's own, and tuples as lists."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, str | bool) or value is None:
        return value
    return int(value) if isinstance(value, Integral) else float(value)
