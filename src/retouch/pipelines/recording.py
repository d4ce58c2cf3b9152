"""The process as pictures: a frame for each step, and the animations and grids made of them.

A frame is decoded when its step is done, exactly by the VAE or roughly as previews are. However long the run,
no more than `limit` frames are kept: when it is full, every second one goes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from retouch.errors import InputError
from retouch.images.files import make_image_grid
from retouch.images.sizes import crop_to
from retouch.pipelines.previews import preview

if TYPE_CHECKING:
    from retouch.pipelines.picture_run import PictureRun
    from retouch.sampling.denoise import Progress


@dataclass(frozen=True)
class Frame:
    """The picture after a step, with the noise level that was left: 1 is pure noise, 0 none."""

    image: Image.Image
    step: int  # counted from 1
    steps: int
    noise_level: float

    @property
    def caption(self) -> str:
        return f"step {self.step}/{self.steps}   noise {100 * self.noise_level:.0f} %"

    def captioned(self) -> Image.Image:
        """The picture with its caption below."""
        height = max(14, self.image.height // 16)
        page = Image.new("RGB", (self.image.width, self.image.height + height + 4), "black")
        page.paste(self.image, (0, 0))
        font = ImageFont.load_default(size=0.8 * height)
        ImageDraw.Draw(page).text((4, self.image.height + 2), self.caption, fill="white", font=font)
        return page


@dataclass
class Recording:
    """Give one as `record=`, or True for one with these defaults; the output has it as `recording`."""

    fast: bool = False  # previews in place of what the VAE makes: rougher, but next to free
    limit: int = 60
    frames: list[Frame] = field(default_factory=list)
    _stride: int = 1

    def __post_init__(self) -> None:
        if self.limit < 2:
            raise InputError(f"limit={self.limit} is too few frames for a recording; give 2 or more.")

    @classmethod
    def wanted(cls, record: Any) -> Recording | None:
        """The recording that a call's `record` argument asks for."""
        if record is None or record is False:
            return None
        if record is True:
            return cls()
        if isinstance(record, cls):
            return record
        raise InputError(f"record is a {type(record).__name__}; give True, False or a retouch.Recording.")

    def add(self, run: PictureRun, progress: Progress, done: int, total: int, level: float) -> None:
        """Keep the picture after a step. Several pictures of a batch stand side by side."""
        if done != total and done % self._stride:
            return
        if self.fast:
            pixels = preview(run.pipeline, progress.latents)
        else:
            pixels = run.pipeline.decode(progress.latents)
        if run.pictures.cut is not None:
            pixels = crop_to(pixels, *run.pictures.cut)
        images: Any = run.pipeline.image_processor.postprocess(pixels.float(), output_type="pil")
        picture = images[0] if len(images) == 1 else make_image_grid(images, 1, len(images))
        self.frames.append(Frame(picture, done, total, level))
        if len(self.frames) > self.limit:
            self._stride *= 2
            self.frames = [
                frame for frame in self.frames if not frame.step % self._stride or frame.step == total
            ]

    def save_gif(
        self, path: str | os.PathLike[str], *, seconds: float = 0.1, hold: float = 2.0, caption: bool = False
    ) -> Path:
        """An animated GIF; the last frame is held for `hold` seconds."""
        pages = self._pages(caption)
        # One palette for all frames, or colours flicker; the last frame has the colours that matter.
        palette = pages[-1].quantize(255)
        indexed = [page.quantize(palette=palette) for page in pages]
        return self._save(indexed, path, seconds, hold, "GIF", disposal=1, optimize=True)

    def save_webp(
        self, path: str | os.PathLike[str], *, seconds: float = 0.1, hold: float = 2.0, caption: bool = False
    ) -> Path:
        """An animated WebP: smaller than a GIF, in full colour."""
        return self._save(self._pages(caption), path, seconds, hold, "WEBP", quality=85)

    def save_grid(
        self, path: str | os.PathLike[str], *, columns: int | None = None, caption: bool = False
    ) -> Path:
        """All frames on one page, in reading order."""
        pages = self._pages(caption)
        columns = columns or math.ceil(math.sqrt(len(pages)))
        rows = math.ceil(len(pages) / columns)
        blank = Image.new("RGB", pages[0].size)
        grid = make_image_grid([*pages, *[blank] * (rows * columns - len(pages))], rows, columns)
        target = Path(path)
        grid.save(target)
        return target

    def _pages(self, caption: bool) -> list[Image.Image]:
        if not self.frames:
            raise InputError("The recording holds no frame yet. Give it as record= to a call first.")
        return [frame.captioned() if caption else frame.image for frame in self.frames]

    def _save(
        self,
        pages: list[Image.Image],
        path: str | os.PathLike[str],
        seconds: float,
        hold: float,
        kind: str,
        **options: Any,
    ) -> Path:
        target = Path(path)
        durations = [round(1000 * seconds)] * (len(pages) - 1) + [round(1000 * max(hold, seconds))]
        pages[0].save(
            target, kind, save_all=True, append_images=pages[1:], duration=durations, loop=0, **options
        )
        return target
