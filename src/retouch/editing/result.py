"""The result of an edit: the pictures, the settings that made them, and how well they join."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from retouch.errors import InputError
from retouch.images.crops import Crop
from retouch.images.modes import eight_bit
from retouch.images.photo import Photo

_SHOWN = 1024  # longer side of a notebook's picture


@dataclass(frozen=True)
class Edit:
    """The result of a verb. `settings` holds everything that is needed to repeat it."""

    images: Sequence[Image.Image]  # one for each variation, in the photo's own mode and size
    seeds: Sequence[int]
    seams: Sequence[float]  # 1 is none; see retouch.images.seam
    mask: Image.Image  # white where the photo was repainted
    crops: Sequence[Crop]
    coverage: float  # part of the photo that was repainted, 0 to 1
    settings: Mapping[str, Any]
    timings: Mapping[str, float]  # seconds
    photo: Photo = field(repr=False)
    recording: Any = None
    details: Sequence[float] = ()  # 1 is natural; see retouch.images.detail

    @property
    def image(self) -> Image.Image:
        """The first variation."""
        return self.images[0]

    @property
    def seed(self) -> int:
        """The first variation's seed."""
        return self.seeds[0]

    @property
    def seam(self) -> float:
        """Visibility of the first variation's edge; 1 is not at all."""
        return self.seams[0]

    @property
    def detail(self) -> float:
        """How much detail the first variation's fill has, over that of the photo around it; 1 is natural."""
        return self.details[0] if self.details else float("nan")

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """Part of the photo that the model saw: left, top, right, bottom of the first crop."""
        return self.crops[0].box

    def __repr__(self) -> str:
        width, height = self.image.size
        return (
            f"Edit({len(self.images)} x {width}x{height} {self.image.mode}, seed {self.seed}, "
            f"{100 * self.coverage:.2g} % repainted in {len(self.crops)} crop{'s' * (len(self.crops) != 1)}, "
            f"seam {self.seam:.2f}, {sum(self.timings.values()):.1f} s)"
        )

    def _repr_png_(self) -> bytes:
        file, shown = io.BytesIO(), eight_bit(self.image)
        shown = shown.convert("RGBA" if "A" in shown.getbands() else "RGB")
        shown.thumbnail((_SHOWN, _SHOWN))
        shown.save(file, "PNG")
        return file.getvalue()

    def save(self, path: str | os.PathLike[str], index: int = 0, *, quality: int | None = None) -> Path:
        """Write a variation with the photo's metadata and, in a PNG's text, the settings.

        `quality` is that of a JPEG, WebP or AVIF, 1 to 100.
        """
        return self.photo.save(self.images[index], path, text=self.text(index), quality=quality)

    def process(self, longest: int = 720) -> Any:
        """Return the recording with each picture in its place in the photo, and the result at its end.

        The pictures are scaled down to `longest` pixels. Record the edit for it, with `record=True`.
        """
        if self.recording is None:
            raise InputError(
                "The edit was not recorded, so its process cannot be shown. Edit with record=True.",
                parameter="record",
            )
        share = min(1.0, longest / max(self.image.size))

        def scaled(picture: Image.Image) -> Image.Image:
            shown = eight_bit(picture).convert("RGB")
            return shown.resize([max(1, round(side * share)) for side in picture.size])

        photo, last = scaled(self.photo.image), self.recording.frames[-1]
        mask = self.mask.resize(photo.size)
        left, top, right, bottom = (round(edge * share) for edge in self.crop)
        frames = []
        for frame in self.recording.frames:
            painted = photo.copy()
            painted.paste(frame.image.resize((right - left, bottom - top)), (left, top))
            frames.append(replace(frame, image=Image.composite(painted, photo, mask)))
        return replace(self.recording, frames=[*frames, replace(last, image=scaled(self.image))])

    def text(self, index: int = 0) -> dict[str, str]:
        """Return the settings as other programs read them in PNGs ("parameters"), and as JSON ("retouch")."""
        settings = {**self.settings, "seed": self.seeds[index]}
        size = f"{self.crops[0].width}x{self.crops[0].height}" if self.crops else ""
        pairs = {
            "Steps": settings.get("steps"),
            "Sampler": settings.get("scheduler"),
            "CFG scale": settings.get("guidance_scale"),
            "Seed": settings["seed"],
            "Size": size,
            "Model": Path(str(settings.get("model", ""))).name,
            "Denoising strength": settings.get("strength"),
            "Version": f"retouch {settings.get('version', '')}",
        }
        lines = [str(settings.get("prompt", ""))]
        if settings.get("negative_prompt"):
            lines.append(f"Negative prompt: {settings['negative_prompt']}")
        lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items() if value not in (None, "")))
        return {"parameters": "\n".join(lines), "retouch": json.dumps(settings, ensure_ascii=False)}


def mean_of_known(scores: Sequence[float]) -> float:
    """Return the mean of the scores that are not NaN; NaN if none is known."""
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else float("nan")
