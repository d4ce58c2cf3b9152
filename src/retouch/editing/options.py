"""What can be asked of a verb besides photo, mask and prompt, with its defaults and its checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, get_args

from PIL import Image

from retouch.editing.speed import chosen_speed
from retouch.errors import InputError
from retouch.families.call import check_interval
from retouch.images.fill import Fill
from retouch.images.join import Method
from retouch.images.mask import MaskMode


@dataclass(frozen=True)
class Update:
    """Where an edit stands, for its `progress` listener; a listener that returns False cancels it."""

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
    steps: int = 30  # steps that run, whatever the strength
    strength: float = 1.0  # below 1 starts from what is in the hole
    guidance_scale: float = 7.5
    scheduler: str | None = None  # such as "dpm++ 2m karras"; None: the checkpoint's own
    seed: int | None = None  # variation i has seed + i; None: a random one, which the result names
    variations: int = 1
    context: float | str = "50%"  # surroundings to show the model, in pixels or per cent of the hole
    size: int | None = None  # side that a crop is worked on at; None: what the checkpoint likes
    one_pass: bool = False  # no second pass at its own size for a crop that is much larger than that
    feather: float | None = None  # pixels over which old and new mix around the hole; None: from the crop
    join: Method = "match"
    fill: Fill = "original"
    mask_mode: MaskMode = "auto"
    invert: bool = False
    grow: float = 0
    fit_mask: bool = False
    speed: str = "exact"  # or "balanced" or "fast", which stand for settings; see retouch.editing.speed
    guidance_interval: tuple[float, float] | None = None  # noise levels of 0 to 1 that are guided; None: all
    reuse_deep_features: int = 1  # the UNet's deep levels run in every n-th step
    int8: bool = False  # the UNet multiplies in 8 bits
    record: Any = None  # True, or a retouch.Recording: of the first crop of the first variation
    progress: Callable[[Update], Any] | None = None

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Checked options; an unknown name is answered with the nearest known one."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
                raise InputError(f"There is no option {name!r}. {hint}")
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name == "negative_prompt"):
                raise InputError(f"{name} is a {type(value).__name__}; it takes one string.")
        whole = {"steps": 1, "variations": 1, "seed": 0, "size": 64, "reuse_deep_features": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and name in ("seed", "size"):
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise InputError(f"{name}={value!r} is not a whole number of {least} or more.")
        for name in ("strength", "guidance_scale", "feather", "grow"):
            value = getattr(self, name)
            if value is None and name == "feather":
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"{name}={value!r} is not a finite number.")
        if not 0 < self.strength <= 1:
            raise InputError(f"strength={self.strength} is outside 0 to 1 (0 excluded); 1 paints from noise.")
        if self.seed is not None and self.seed >= 2**63 - self.variations:
            raise InputError(f"seed={self.seed} is out of range; it takes a whole number below 2**63.")
        if self.feather is not None and self.feather < 0:
            raise InputError(f"feather={self.feather} is negative; give pixels, 0 for a hard edge.")
        if not isinstance(self.int8, bool):
            raise InputError(f"int8={self.int8!r} is neither True nor False; leave it out for False.")
        chosen_speed(self.speed)
        check_interval(self.guidance_interval)
        for name, kind in (("join", Method), ("fill", Fill), ("mask_mode", MaskMode)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise InputError(f"{name}={value!r} is unknown. Accepted are {', '.join(known)}.")
        if self.progress is not None and not callable(self.progress):
            raise InputError(
                f"progress is a {type(self.progress).__name__}; it takes a function of an Update. Leave it "
                "out for a bar; an editor of retouch.load(..., progress=False) shows none."
            )

    def to_dict(self) -> dict[str, Any]:
        """What it takes to do it again, as JSON can hold it."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        del values["record"], values["progress"]
        return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own, and what holds several as a list."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, str | bool) or value is None:
        return value
    return int(value) if isinstance(value, Integral) else float(value)
