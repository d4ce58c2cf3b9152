"""ControlNet for any family of latent diffusion: one further part, a few arguments, and the control of a run.

The residuals of the nets are applied in sampling/control.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import InputError
from retouch.families.call import Arguments, Call, argument
from retouch.families.family import Parts
from retouch.families.pictures import Pictures, as_list, size_of
from retouch.images.mask import Box
from retouch.images.modes import plain_rgb
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import fill_pixels, pad_pixels
from retouch.images.values import as_tensor, fractions, require_range
from retouch.models.controlnet import MultiControlNetModel
from retouch.sampling.conditioning import spread
from retouch.sampling.control import Control
from retouch.schedulers.plan import Plan

# Settings that a ControlNet must share with the UNet that its residuals are added to.
_MUST_MATCH = ("cross_attention_dim", "block_out_channels", "addition_embed_type")


@dataclass(frozen=True)
class ControlArguments(Arguments):
    """The arguments of a call with a ControlNet."""

    control_image: Any = argument(
        None,
        "The control picture: PIL, array or tensor, whose values are kept; for several nets a list with one "
        "for each.",
    )
    controlnet_conditioning_scale: float | Sequence[float] = argument(
        1.0, "How strongly the ControlNet acts; for several nets also a list. None: the task's default."
    )
    guess_mode: bool = argument(
        False, "Leave the negative half without control, and weaken fine levels: for calls without a prompt."
    )
    control_guidance_start: float | Sequence[float] = argument(
        0.0, "Fraction of the steps from which the ControlNet acts; for several nets also a list."
    )
    control_guidance_end: float | Sequence[float] = argument(
        1.0, "Fraction of the steps up to which the ControlNet acts; for several nets also a list."
    )


@dataclass(frozen=True)
class ControlNetUse:
    """The use of ControlNets by a pipeline class. `argument` is its name of the control picture."""

    argument: str = "control_image"
    arguments: type[ControlArguments] = ControlArguments

    def prepared(self, components: dict[str, Any]) -> dict[str, Any]:
        """Return a pipeline's parts with a list of ControlNets joined into one model."""
        given: Any = components.get("controlnet")
        several = isinstance(given, list | tuple)
        if given is not None and not all(map(callable, given if several else [given])):
            raise InputError(
                f"controlnet is {given!r:.80}. A ControlNetModel or a list of them is accepted; make one "
                "with ControlNetModel.from_pretrained(name).",
                parameter="controlnet",
            )
        return {**components, "controlnet": MultiControlNetModel(given)} if several else components

    def check(self, parts: Parts, call: Call) -> None:
        """Refuse nets and arguments that do not fit."""
        given: ControlArguments = call.control
        if not isinstance(given.guess_mode, bool):
            raise InputError(
                f"guess_mode={given.guess_mode!r} is neither True nor False.", parameter="guess_mode"
            )
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            value = getattr(given, name)
            for number in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(number, Real) or not np.isfinite(float(number)):
                    raise InputError(
                        f"{name}={value!r} is not a finite number, nor a list with one for each ControlNet.",
                        parameter=name,
                    )
        if call.tile_size is not None:
            raise InputError(
                "tile_size was given to a pipeline with a ControlNet, whose picture is not cut into windows. "
                "Leave one of them out.",
                parameter="tile_size",
            )
        for net in _nets(parts):
            _check_net(parts, net)
        for start, end in _windows(parts, given):
            if not 0 <= start < end <= 1:
                raise InputError(
                    f"control_guidance_start={start} and control_guidance_end={end} are not a part of the "
                    "run. They are fractions of the steps from 0 to 1, the start before the end.",
                    parameter="control_guidance_start",
                )
        _per_net("controlnet_conditioning_scale", parts, given)

    def arrange(self, parts: Parts, call: Call, pictures: Pictures, processor: VaeImageProcessor) -> Pictures:
        """Return the pictures with the control pictures at the working size.

        Without a picture to start from, the control picture sets the size.
        """
        per_net = [
            [self._readable(picture) for picture in net]
            for net in self._pictures_per_net(parts, call.control.control_image)
        ]
        multiple = parts.layout.multiple
        free_size = call.height is None and call.width is None
        if call.image is None:
            own = size_of(per_net[0][0])
            height, width = (
                side or filled
                for side, filled in zip((call.height, call.width), parts.layout.filled_up(*own), strict=True)
            )
            cut = own if free_size and own != (height, width) else None
            pictures = replace(pictures, height=height, width=width, cut=cut)
        else:
            own = pictures.cut or (pictures.height, pictures.width)
        if pictures.pastes:
            rows = [self._cropped(net, pictures, processor) for net in per_net]
        else:
            size = own if free_size else (pictures.height, pictures.width)
            if free_size:
                for picture in (picture for net in per_net for picture in net):
                    self._require_aspect(size_of(picture), own)
            rows = [
                torch.cat([_at_size(picture, size, processor, multiple) for picture in net])
                for net in per_net
            ]
        control = [self._channels(part, net) for part, net in zip(rows, _nets(parts), strict=True)]
        counts = {count for count in [pictures.count, *map(len, control)] if count > 1}
        if len(counts) > 1:
            raise InputError(
                f"{self.argument} and the other pictures are {sorted(counts)} in number. Give one of a kind "
                "for all, or the same number of each.",
                parameter=self.argument,
            )
        return replace(pictures, control=control)

    @contextmanager
    def control(
        self, parts: Parts, call: Call, pictures: Pictures, plan: Plan, rows: int
    ) -> Iterator[Control]:
        """Give the control of a run, while its nets are where they can run."""
        given: ControlArguments = call.control
        with parts.using("controlnet") as model:
            nets = model if hasattr(model, "nets") else MultiControlNetModel([model])
            yield Control(
                nets,
                plan,
                [spread(part.to(parts.device, nets.dtype), rows) for part in pictures.control],
                _per_net("controlnet_conditioning_scale", parts, given),
                _windows(parts, given),
                # The first net decides for all, as in the reference.
                given.guess_mode or _nets(parts)[0].config.global_pool_conditions,
            )

    def _pictures_per_net(self, parts: Parts, value: Any) -> list[list[Any]]:
        """Return the control pictures of each net. A list of lists holds one prompt's pictures after
        another's.
        """
        name, count = self.argument, len(_nets(parts))
        if not hasattr(parts.part("controlnet"), "nets"):
            value = [value]
        elif isinstance(value, list | tuple) and any(isinstance(part, list | tuple) for part in value):
            lengths = {len(part) if isinstance(part, list | tuple) else 1 for part in value}
            if lengths != {count}:
                raise InputError(
                    f"{name} is a list of lists with {sorted(lengths)} entries, and there are {count} "
                    "ControlNets. Each inner list belongs to a prompt and holds a picture for each net.",
                    parameter=name,
                )
            value = list(zip(*value, strict=True))
        elif not isinstance(value, list | tuple):
            value = [value]
        if len(value) != count:
            raise InputError(
                f"{name} holds {len(value)} pictures for {count} ControlNets. Give a list with one picture "
                "for each net, in the order of the nets.",
                parameter=name,
            )
        nets = [as_list(part) for part in value]
        if not all(nets):
            raise InputError(f"{name} is an empty list. Give a picture for each ControlNet.", parameter=name)
        return nets

    def _readable(self, picture: Any) -> Any:
        """Return a PIL picture as RGB, and anything else as (channels, height, width) values from -1 to 1."""
        name = self.argument
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
        given = f"{self.argument} is {width}x{height} but the picture is {own_width}x{own_height}."
        if abs(width * own_height - own_width * height) > max(*size, *own):
            raise InputError(
                f"{given} A control picture must have its picture's size, or at least its aspect. Make one "
                "for this picture, or give height and width, to which both are stretched.",
                parameter=self.argument,
            )
        warnings.warn(
            f"{given} The control picture was scaled. Give one of the same size for exact edges.",
            stacklevel=2,
        )

    def _cropped(self, net: list[Any], pictures: Pictures, processor: VaeImageProcessor) -> Tensor:
        """Return the control pictures of each crop, brought to the working size in the same way."""
        rows = []
        for row in range(max(len(net), len(pictures.pastes))):
            picture = net[row % len(net)]
            original, _, box = pictures.pastes[row % len(pictures.pastes)]
            self._require_aspect(size_of(picture), size_of(original))
            rows.append(_crop(picture, original.size, box, (pictures.height, pictures.width), processor))
        return torch.cat(rows)

    def _channels(self, pixels: Tensor, net: Any) -> Tensor:
        wanted = net.config.conditioning_channels
        if pixels.shape[1] not in (1, wanted):
            raise InputError(
                f"{self.argument} has {pixels.shape[1]} channels, and this ControlNet takes {wanted}. Drop "
                "an alpha channel, or convert the picture.",
                parameter=self.argument,
            )
        return pixels.expand(-1, wanted, -1, -1)


def _nets(parts: Parts) -> list[Any]:
    """Return the single ControlNets."""
    model = parts.part("controlnet")
    return list(getattr(model, "nets", [model]))


def _check_net(parts: Parts, net: Any) -> None:
    channels = parts.layout.channels
    if net.config.in_channels != channels:
        raise InputError(
            f"The ControlNet takes {net.config.in_channels} latent channels; {channels} are supported, also "
            "with an inpainting UNet. Use one made for a regular checkpoint.",
            parameter="controlnet",
        )
    for key in _MUST_MATCH:
        # A config of the reference has lists where ours has tuples.
        ours, theirs = (
            tuple(value) if isinstance(value, list) else value
            for value in (net.config[key], parts.part("unet").config[key])
        )
        if ours != theirs:
            raise InputError(
                f"The ControlNet has {key} = {ours} and the UNet {theirs}: they are of different families. "
                "Use a ControlNet for this checkpoint's family (SD 1.x, SD 2.x or SDXL).",
                parameter="controlnet",
            )


def _windows(parts: Parts, given: ControlArguments) -> list[tuple[float, float]]:
    starts, ends = (_per_net(f"control_guidance_{edge}", parts, given) for edge in ("start", "end"))
    return list(zip(starts, ends, strict=True))


def _per_net(name: str, parts: Parts, given: ControlArguments) -> list[float]:
    """Return a number for each net, from one for all or one for each."""
    value, count = getattr(given, name), len(_nets(parts))
    numbers = [float(number) for number in value] if isinstance(value, list | tuple) else [float(value)]
    if len(numbers) not in (1, count) or not numbers:
        raise InputError(
            f"{name} has {len(numbers)} entries for {count} ControlNets. Give one number for all, or a list "
            "with one for each.",
            parameter=name,
        )
    return numbers * count if len(numbers) == 1 else numbers


def _at_size(picture: Any, size: tuple[int, int], processor: VaeImageProcessor, multiple: int) -> Tensor:
    """Return (1, channels, height, width), filled up to a multiple by repeating the edge."""
    height, width = size
    if isinstance(picture, Image.Image):
        resized = processor.resize(picture, height, width)
        pixels = processor.numpy_to_pt(processor.pil_to_numpy(resized))
    elif size_of(picture) == size:
        pixels = picture[None]
    else:
        pixels = processor.resize(picture[None], height, width)
    return pad_pixels(pixels, multiple)


def _crop(
    picture: Any, original: tuple[int, int], box: Box, size: tuple[int, int], processor: VaeImageProcessor
) -> Tensor:
    height, width = size
    if isinstance(picture, Image.Image):
        whole = picture if picture.size == original else picture.resize(original)
        return processor.preprocess(whole, height, width, resize_mode="fill", crops_coords=box)
    whole = processor.resize(picture[None], *original[::-1])
    left, top, right, bottom = box
    return fill_pixels(whole[..., top:bottom, left:right], width, height)
