"""Watching a run: the callback after each step, previews of the latents, and recordings of the whole process.

Nothing here changes a result, except what a callback replaces on purpose.
"""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from retouch.errors import InputError
from retouch.families.autoencoder import decode_latents
from retouch.families.call import Call
from retouch.families.family import Family
from retouch.families.latents import LatentLayout
from retouch.images.files import make_image_grid
from retouch.images.sizes import crop_to
from retouch.pipelines.components import plain
from retouch.sampling.denoise import Progress
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region
from retouch.schedulers.plan import Plan


class RunningCall(Protocol):
    """A run, as callbacks and recordings see it."""

    pipeline: Any
    family: Family
    call: Call
    pictures: Any
    rows: int


class StepCallback:
    """Calls `callback_on_step_end` after a step, and puts the tensors that it returns into the run.

    The tensors look as the reference's do: with guidance, negative rows come before positive ones.
    """

    def __init__(self, run: RunningCall, predict: Predictor, region: Region | None) -> None:
        self.run, self.family, self.predict, self.region = run, run.family, predict, region
        self.function = run.call.callback_on_step_end
        control = run.pipeline.controlnet_use
        self.control_name = None if control is None else control.argument
        self._ignored: set[str] = set()  # names that a warning was given for

    def __call__(self, index: int, progress: Progress) -> None:
        if self.function is None:
            return
        tensors = {name: self._read(name, progress) for name in self.run.call.callback_tensors}
        answer = self.function(self.run, index, progress.step.timestep, dict(tensors)) or {}
        self._warn_of_unknown(answer)
        for name, value in answer.items():
            # Negative rows are a part of another tensor; returned unchanged, they must not undo its
            # replacement.
            if name not in self.family.negative_tensors or value is not tensors.get(name):
                self._replace(name, value, progress)

    def _warn_of_unknown(self, names: Iterable[str]) -> None:
        known = self.run.pipeline.tensor_names
        new = [name for name in names if name not in known and name not in self._ignored]
        if new:
            self._ignored.update(new)
            warnings.warn(
                f"The callback returned {', '.join(map(str, new))}, which has no effect. It can replace "
                f"{', '.join(known)}. Return one of these, or leave it out.",
                stacklevel=2,
            )

    def _read(self, name: str, progress: Progress) -> Any:
        predict, family, rows = self.predict, self.family, self.run.rows
        if name == "latents":
            return progress.latents
        if predict.control is not None and name == self.control_name:
            shown = predict.control.shown(predict.guidance)
            return shown if len(shown) > 1 else shown[0]
        if name in family.tensors:
            return _at(predict.inputs, family.tensors[name])
        if name in family.negative_tensors:
            both = _at(predict.inputs, family.negative_tensors[name])
            return both[:rows] if len(both) > rows else None
        if predict.channels is not None:
            return predict.guidance.repeat(predict.channels[:, family.channel_tensors[name]])
        if name == family.mask_tensor and self.region is not None:
            return predict.guidance.repeat(family.shown_mask(self.region.repaint))
        return None

    def _replace(self, name: str, value: Any, progress: Progress) -> None:
        predict, family, rows = self.predict, self.family, self.run.rows
        if name == "latents":
            progress.latents = value
        elif predict.control is not None and name == self.control_name:
            predict.control.show(value if isinstance(value, list | tuple) else [value])
        elif name in family.tensors:
            predict.inputs = _with(predict.inputs, family.tensors[name], value)
        elif name in family.negative_tensors:
            path = family.negative_tensors[name]
            both = _at(predict.inputs, path).clone()
            both[: len(both) - rows] = value
            predict.inputs = _with(predict.inputs, path, both)
        elif name in family.channel_tensors and value is not None:
            if predict.channels is not None:
                predict.channels = predict.channels.clone()
                predict.channels[:, family.channel_tensors[name]] = value[-rows:]
            if name == family.mask_tensor and self.region is not None:
                self.region.repaint = family.shown_mask(value[-rows:])


def _at(inputs: Mapping[str, Any], path: Sequence[str]) -> Any:
    for key in path:
        inputs = inputs[key]
    return inputs


def _with(inputs: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the inputs with one replaced; mappings inside may be shared, so they are not changed."""
    key, *rest = path
    return {**inputs, key: _with(inputs[key], rest, value) if rest else value}


def preview(pipeline: Any, latents: Tensor) -> Tensor:
    """Return rough pixels in [-1, 1] of a run's latents, by the preview decoder or else by a linear map."""
    if pipeline.preview_decoder is None:
        return linear_colours(pipeline, latents)
    with pipeline.using("preview_decoder") as decoder:
        return decode_latents(decoder, LatentLayout.of_autoencoder(decoder), latents).float().clamp(-1, 1)


def check_preview_decoder(decoder: Any, layout: LatentLayout) -> None:
    """Refuse a preview decoder for latents of another layout."""
    accepted = (
        f"This pipeline takes an AutoencoderTiny of {layout.channels} channels and {layout.stride} pixels a "
        "side for each latent"
    )
    if type(plain(decoder)).__name__ != "AutoencoderTiny":
        raise InputError(
            f"preview_decoder is a {type(decoder).__name__}. {accepted}, or None for a linear map. Load one "
            "with AutoencoderTiny.from_pretrained.",
            parameter="preview_decoder",
        )
    config: Any = decoder.config
    stride = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    if (config.latent_channels, stride) != (layout.channels, layout.stride):
        raise InputError(
            f"preview_decoder decodes latents of {config.latent_channels} channels and {stride} pixels a "
            f"side. {accepted}. Load the one that was made for this family of checkpoints, or give None.",
            parameter="preview_decoder",
        )


# Linear maps of the published VAEs, by their scaling factor: a row for each latent channel, to red, green and
# blue. Users found them (for SD torridgristle, for SDXL StAlKeR7779), and InvokeAI uses them too.
_PUBLISHED_WIDTHS = (128, 256, 512, 512)
_PUBLISHED = {
    0.18215: (
        (0.3444, 0.1385, 0.0670),
        (0.1247, 0.4027, 0.1494),
        (-0.3192, 0.2513, 0.2103),
        (-0.1307, -0.1874, -0.7445),
    ),
    0.13025: (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    ),
}
_maps: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()


def linear_colours(pipeline: Any, latents: Tensor) -> Tensor:
    """Return pixels in [-1, 1] by a linear map of each latent: a published one, or one fitted to the
    pipeline.
    """
    vae = pipeline.part(pipeline.family.autoencoder)
    if vae not in _maps:
        published = _published_colours(vae)
        _maps[vae] = _fit_colours(pipeline) if published is None else published
    weights = _maps[vae]
    channels = latents.float().cpu()
    flat = torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)
    colours = torch.einsum("nchw,cr->nrhw", flat, weights).clamp(-1, 1)
    return torch.nn.functional.interpolate(colours, scale_factor=pipeline.layout.stride, mode="nearest")


def _published_colours(vae: Any) -> Tensor | None:
    config: Any = getattr(vae, "config", None)
    factor = getattr(config, "scaling_factor", None)
    if factor not in _PUBLISHED or tuple(config.block_out_channels) != _PUBLISHED_WIDTHS:
        return None
    return torch.tensor([*_PUBLISHED[factor], (0.0, 0.0, 0.0)])


def _fit_colours(pipeline: Any) -> Tensor:
    """Fit a map from latents to the mean colours of their pixels by least squares, over smooth random
    pictures.
    """
    stride, side = pipeline.layout.stride, 16
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(-1, 1, (8, 3, 5, 5)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, size=(side * stride,) * 2, mode="bilinear")
    source = torch.Generator().manual_seed(0)
    latents = pipeline.encode(pixels.to(pipeline.device, pipeline.dtype), source).float().cpu()
    colours = torch.nn.functional.avg_pool2d(pixels, stride)
    rows = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    targets = colours.movedim(1, -1).reshape(-1, 3)
    # Directions in which these latents hardly vary are dropped: noise along them would be amplified.
    fit = torch.linalg.lstsq(rows.double(), targets.double(), rcond=1e-3, driver="gelsd")
    return fit.solution.float()


@dataclass(frozen=True)
class Frame:
    """The picture after a step, with the remaining noise level: 1 is pure noise, 0 none."""

    image: Image.Image
    step: int  # counted from 1
    steps: int
    noise_level: float

    @property
    def caption(self) -> str:
        return f"step {self.step}/{self.steps}   noise {100 * self.noise_level:.0f} %"

    def captioned(self) -> Image.Image:
        """Return the picture with its caption below."""
        height = max(14, self.image.height // 16)
        page = Image.new("RGB", (self.image.width, self.image.height + height + 4), "black")
        page.paste(self.image, (0, 0))
        font = ImageFont.load_default(size=0.8 * height)
        ImageDraw.Draw(page).text((4, self.image.height + 2), self.caption, fill="white", font=font)
        return page


@dataclass
class Recording:
    """A picture of each step of a run. Give one as `record=`, or True for one with these defaults.

    The output has it as `recording`. When `limit` frames are kept, every second one is dropped, so that a
    long run takes no more memory than a short one.
    """

    fast: bool = False  # previews in place of the VAE's pictures: rough, and almost free
    limit: int = 60
    frames: list[Frame] = field(default_factory=list)
    _stride: int = 1

    def __post_init__(self) -> None:
        if self.limit < 2:
            raise InputError(
                f"limit={self.limit} is too few frames for a recording; give 2 or more.", parameter="limit"
            )

    @classmethod
    def wanted(cls, record: Any) -> Recording | None:
        """Return the recording that a call's `record` argument asks for."""
        if record is None or record is False:
            return None
        if record is True:
            return cls()
        if isinstance(record, cls):
            return record
        raise InputError(
            f"record is a {type(record).__name__}. True, False or a retouch.Recording is accepted.",
            parameter="record",
        )

    def add(self, run: RunningCall, plan: Plan, progress: Progress, done: int) -> None:
        """Keep the picture after a step. The pictures of a batch stand side by side."""
        total = len(plan)
        if done != total and done % self._stride:
            return
        following = plan.following(progress.step)
        level = 0.0 if following is None else plan.level(following)
        pipeline = run.pipeline
        pixels = preview(pipeline, progress.latents) if self.fast else pipeline.decode(progress.latents)
        if run.pictures.cut is not None:
            pixels = crop_to(pixels, *run.pictures.cut)
        images: Any = pipeline.image_processor.postprocess(pixels.float(), output_type="pil")
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
        """Write an animated GIF; the last frame is held for `hold` seconds."""
        pages = self._pages(caption)
        # One palette for all frames, or colours flicker; the last frame has the colours that matter.
        palette = pages[-1].quantize(255)
        indexed = [page.quantize(palette=palette) for page in pages]
        return self._save(indexed, path, seconds, hold, "GIF", disposal=1, optimize=True)

    def save_webp(
        self, path: str | os.PathLike[str], *, seconds: float = 0.1, hold: float = 2.0, caption: bool = False
    ) -> Path:
        """Write an animated WebP: smaller than a GIF, in full colour."""
        return self._save(self._pages(caption), path, seconds, hold, "WEBP", quality=85)

    def save_grid(
        self, path: str | os.PathLike[str], *, columns: int | None = None, caption: bool = False
    ) -> Path:
        """Write all frames on one page, in reading order."""
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
            raise InputError("The recording has no frames yet. Give it as record= to a call first.")
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
