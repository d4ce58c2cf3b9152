"""ControlNet for any family of latent diffusion: a further part, a few arguments, and the control of a run.

`Controlled` is mixed into a family by controlnet_names.py. What the nets find is used in sampling/control.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import InputError
from retouch.images.modes import plain_rgb
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import fill_pixels, pad_pixels
from retouch.images.values import as_tensor, fractions, require_range
from retouch.models.controlnet import MultiControlNetModel
from retouch.pipelines.latent_diffusion import LatentDiffusion
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.pictures import Box, Pictures, listed, size_of
from retouch.pipelines.request import Request, argument
from retouch.sampling.control import Control
from retouch.schedulers.plan import Plan

# What a ControlNet's residuals must have in common with the UNet that they are added to.
_MUST_MATCH = ("cross_attention_dim", "block_out_channels", "addition_embed_type")


@dataclass(frozen=True)
class ControlRequest(Request):
    """A request with a control picture for each ControlNet."""

    control_image: Any = argument(
        None,
        "The control picture: PIL, array or tensor, whose values are kept; for several nets a list with one "
        "for each.",
    )
    controlnet_conditioning_scale: float | Sequence[float] = argument(
        1.0, "How strongly the ControlNet acts; for several nets also a list."
    )
    guess_mode: bool = argument(
        False, "Leave the negative side without control, and weaken fine levels: for runs without a prompt."
    )
    control_guidance_start: float | Sequence[float] = argument(
        0.0, "Fraction of the steps from which the ControlNet acts; for several nets also a list."
    )
    control_guidance_end: float | Sequence[float] = argument(
        1.0, "Fraction of the steps up to which it acts; for several nets also a list."
    )

    def check(self, size_factor: int, listenable: Any = ()) -> None:
        super().check(size_factor, listenable)
        if not isinstance(self.guess_mode, bool):
            raise InputError(f"guess_mode={self.guess_mode!r} is neither True nor False.")
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            value = getattr(self, name)
            for number in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(number, Real) or not np.isfinite(float(number)):
                    raise InputError(
                        f"{name}={value!r} is not a finite number, nor a list with one for each ControlNet."
                    )


class Controlled(LatentDiffusion):
    """Mixin: a family whose model is steered by one ControlNet or by several."""

    control_argument: ClassVar[str] = "control_image"  # its name in the call

    controlnet: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.component_names = (*cls.component_names, "controlnet")
        cls.listenable = {**cls.listenable, cls.control_argument: ()}  # where it is, callbacks.py knows
        super().__init_subclass__(**kwargs)

    def __init__(self, **components: Any) -> None:
        given: Any = components.get("controlnet")
        several = isinstance(given, list | tuple)
        if given is not None and not all(map(callable, given if several else [given])):
            raise InputError(
                f"controlnet is {given!r:.80}. A ControlNetModel or a list of them is accepted; make one "
                "with ControlNetModel.from_pretrained(name)."
            )
        if several:
            components["controlnet"] = MultiControlNetModel(given)
        super().__init__(**components)
        self.control_image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False
        )

    @property
    def _nets(self) -> list[Any]:
        """The single ControlNets; a compiled one or several may be in a wrapper that passes attributes on."""
        return list(getattr(self.controlnet, "nets", [self.controlnet]))

    def check(self, request: Any) -> None:
        super().check(request)
        if request.tile_size is not None:
            raise InputError(
                "tile_size was given to a pipeline with a ControlNet, whose picture is not cut into windows. "
                "Leave one of them out."
            )
        for net in self._nets:
            if net.config.in_channels != self.latent_channels:
                raise InputError(
                    f"The ControlNet takes {net.config.in_channels} latent channels; {self.latent_channels} "
                    "are supported, also beside an inpainting UNet. Use one made for a regular checkpoint."
                )
            for key in _MUST_MATCH:
                # Lists in a config of the reference's are tuples in ours.
                ours, theirs = (
                    tuple(value) if isinstance(value, list) else value
                    for value in (net.config[key], self.unet.config[key])
                )
                if ours != theirs:
                    raise InputError(
                        f"The ControlNet has {key} = {ours} and the UNet {theirs}: they are of different "
                        "families. Use a ControlNet for this checkpoint's family (SD 1.x, SD 2.x or SDXL)."
                    )
        for start, end in self._windows(request):
            if not 0 <= start < end <= 1:
                raise InputError(
                    f"control_guidance_start={start} and control_guidance_end={end} are no part of the run. "
                    "They take fractions of the steps from 0 to 1, the start before the end."
                )
        self._per_net("controlnet_conditioning_scale", request)

    def _windows(self, request: Any) -> list[tuple[float, float]]:
        starts, ends = (self._per_net(f"control_guidance_{edge}", request) for edge in ("start", "end"))
        return list(zip(starts, ends, strict=True))

    def _per_net(self, name: str, request: Any) -> list[float]:
        """A number for each net, from one for all or one for each."""
        value, count = getattr(request, name), len(self._nets)
        numbers = [float(number) for number in value] if isinstance(value, list | tuple) else [float(value)]
        if len(numbers) not in (1, count) or not numbers:
            raise InputError(
                f"{name} has {len(numbers)} entries for {count} ControlNets. Give one number for all, or a "
                "list with one for each."
            )
        return numbers * count if len(numbers) == 1 else numbers

    def _pictures_per_net(self, value: Any) -> list[list[Any]]:
        """The control pictures of each net. A list of lists holds those of one prompt after the other."""
        name, count = self.control_argument, len(self._nets)
        if not hasattr(self.controlnet, "nets"):
            value = [value]
        elif isinstance(value, list | tuple) and any(isinstance(part, list | tuple) for part in value):
            lengths = {len(part) if isinstance(part, list | tuple) else 1 for part in value}
            if lengths != {count}:
                raise InputError(
                    f"{name} is a list of lists with {sorted(lengths)} entries, and there are {count} "
                    "ControlNets. Each inner list belongs to a prompt and holds a picture for each net."
                )
            value = list(zip(*value, strict=True))
        elif not isinstance(value, list | tuple):
            value = [value]
        if len(value) != count:
            raise InputError(
                f"{name} holds {len(value)} pictures for {count} ControlNets. Give a list with one picture "
                "for each net, in the order of the nets."
            )
        nets = [listed(part) for part in value]
        if not all(nets):
            raise InputError(f"{name} is an empty list. Give a picture for each ControlNet.")
        return nets

    def prepare(self, request: Any) -> Pictures:
        """Without a picture to start from, the control picture sets the size."""
        per_net = [
            [self._readable(picture) for picture in pictures]
            for pictures in self._pictures_per_net(request.control_image)
        ]
        free_size = request.height is None and request.width is None
        if request.image is None:
            own, factor = size_of(per_net[0][0]), self.vae_scale_factor
            height, width = (
                side or -(-found // factor) * factor
                for side, found in zip((request.height, request.width), own, strict=True)
            )
            cut = own if free_size and own != (height, width) else None
            pictures = Pictures(height, width, cut=cut)
        else:
            pictures = super().prepare(request)
            own = pictures.cut or (pictures.height, pictures.width)
        if pictures.pastes:
            rows = [self._cropped(part, pictures) for part in per_net]
        else:
            size = own if free_size else (pictures.height, pictures.width)
            if free_size:
                for picture in (picture for part in per_net for picture in part):
                    self._require_aspect(size_of(picture), own)
            rows = [torch.cat([self._at_size(picture, size) for picture in part]) for part in per_net]
        control = [self._channels(part, net) for part, net in zip(rows, self._nets, strict=True)]
        counts = {count for count in [pictures.count, *map(len, control)] if count > 1}
        if len(counts) > 1:
            raise InputError(
                f"{self.control_argument} and the other pictures are {sorted(counts)} in number. Give one of "
                "a kind for all, or as many of each."
            )
        return replace(pictures, control=control)

    def _readable(self, picture: Any) -> Any:
        """A PIL picture as RGB; anything else as (channels, height, width) values from -1 to 1."""
        name = self.control_argument
        if isinstance(picture, Image.Image):
            return plain_rgb(picture, name)
        values = fractions(as_tensor(picture, name), name)
        if values.ndim == 2:
            values = values[None]
        elif isinstance(picture, np.ndarray):
            values = values.movedim(-1, -3)
        require_range(values, -1, name)
        return values.float()

    def _require_aspect(self, size: tuple[int, int], own: tuple[int, int]) -> None:
        if size == own:
            return
        (height, width), (own_height, own_width) = size, own
        given = f"{self.control_argument} is {width}x{height} but the picture is {own_width}x{own_height}."
        if abs(width * own_height - own_width * height) > max(*size, *own):
            raise InputError(
                f"{given} A control picture must have its picture's size, or at least its aspect; make one "
                "for this picture, or give height and width, to which both are stretched."
            )
        warnings.warn(
            f"{given} The control picture was scaled. Give one of the same size for exact edges.",
            stacklevel=2,
        )

    def _at_size(self, picture: Any, size: tuple[int, int]) -> Tensor:
        """(1, channels, height, width), filled up to the VAE's factor by repeating the edge."""
        height, width = size
        if isinstance(picture, Image.Image):
            pixels = self._pixels(self.control_image_processor.resize(picture, height, width))
        elif size_of(picture) == size:
            pixels = picture[None]
        else:
            pixels = self.control_image_processor.resize(picture[None], height, width)
        return pad_pixels(pixels, self.vae_scale_factor)

    def _cropped(self, part: list[Any], pictures: Pictures) -> Tensor:
        """What belongs to each picture's crop, brought to the working size in the same way."""
        rows = []
        for row in range(max(len(part), len(pictures.pastes))):
            picture = part[row % len(part)]
            original, _, box = pictures.pastes[row % len(pictures.pastes)]
            self._require_aspect(size_of(picture), size_of(original))
            rows.append(self._crop(picture, original.size, box, (pictures.height, pictures.width)))
        return torch.cat(rows)

    def _crop(self, picture: Any, original: tuple[int, int], box: Box, size: tuple[int, int]) -> Tensor:
        height, width = size
        processor = self.control_image_processor
        if isinstance(picture, Image.Image):
            whole = picture if picture.size == original else picture.resize(original)
            return processor.preprocess(whole, height, width, resize_mode="fill", crops_coords=box)
        whole = processor.resize(picture[None], *original[::-1])
        left, top, right, bottom = box
        return fill_pixels(whole[..., top:bottom, left:right], width, height)

    def _pixels(self, picture: Image.Image) -> Tensor:
        return self.control_image_processor.numpy_to_pt(self.control_image_processor.pil_to_numpy(picture))

    def _channels(self, pixels: Tensor, net: Any) -> Tensor:
        wanted = net.config.conditioning_channels
        if pixels.shape[1] not in (1, wanted):
            raise InputError(
                f"{self.control_argument} has {pixels.shape[1]} channels, and this ControlNet takes "
                f"{wanted}. Drop an alpha channel, or convert the picture."
            )
        return pixels.expand(-1, wanted, -1, -1)

    @contextmanager
    def control(self, run: PictureRun, plan: Plan) -> Iterator[Control]:
        """The control of a run, for as long as its nets are where they can work."""
        request: Any = run.request
        with self.placement.using("controlnet") as model:
            nets = model if hasattr(model, "nets") else MultiControlNetModel([model])
            yield Control(
                nets,
                plan,
                [run.spread(part.to(self.device, nets.dtype)) for part in run.pictures.control],
                self._per_net("controlnet_conditioning_scale", request),
                self._windows(request),
                # The first net decides for all, as in the reference.
                request.guess_mode or self._nets[0].config.global_pool_conditions,
            )
