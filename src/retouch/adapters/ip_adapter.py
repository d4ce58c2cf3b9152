"""IP-Adapter on a pipeline: load adapters, set their scales, and condition a call on images beside the
prompt.

Adapters belong to the UNet, so pipelines that share it share them. Images, their weighting and their masks
belong to a call. The functions whose first parameter is `self` and that diffusers has too are methods of the
pipelines; a run uses `check`, `weighting` and `conditioned`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.ip_adapter import read_ip_adapter
from retouch.checkpoints.locate import Checkpoint
from retouch.errors import InputError, errors_about
from retouch.families.call import Call
from retouch.families.family import Parts
from retouch.images.modes import plain_rgb
from retouch.models import ip_adapter as unet_layers
from retouch.models.ip_adapter import Weighting
from retouch.sampling.conditioning import Conditioning, spread

_ENCODER = "CLIPVisionModelWithProjection"
_ENCODER_SIZE = 224  # side of the pictures that CLIP's image encoders read, for a pipeline without an encoder


def load_ip_adapter(
    self: Parts,
    pretrained_model_name_or_path_or_dict: Any,
    subfolder: str | Sequence[str] | None = None,
    weight_name: str | Sequence[str] | None = None,
    image_encoder_folder: str | None = "image_encoder",
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    use_safetensors: bool | None = None,
) -> None:
    """Load one IP-Adapter or a list of them from files, folders, hub repositories or tensors.

    They replace those loaded before, each at the scale 1. A pipeline without an image encoder gets the one in
    `image_encoder_folder`, which is inside `subfolder`, or a path from the repository's root if it contains a
    slash. None loads none: calls then take `ip_adapter_image_embeds`.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "use_safetensors": use_safetensors,
    }
    named = {
        "pretrained_model_name_or_path_or_dict": _listed(pretrained_model_name_or_path_or_dict),
        "subfolder": _listed(subfolder),
        "weight_name": _listed(weight_name),
    }
    count = max(len(values) for values in named.values())
    for argument, values in named.items():
        if len(values) not in (1, count):
            raise InputError(
                f"{argument} has {len(values)} entries for {count} IP-Adapters. Give one for all, or a list "
                "with one for each.",
                parameter=argument,
            )
    entries = [values * count if len(values) == 1 else values for values in named.values()]
    files, encoder = [], self.part("image_encoder")
    with errors_about("pretrained_model_name_or_path_or_dict"):
        for source, part, weight in zip(*entries, strict=True):
            name: Any = source
            if not isinstance(source, Mapping):
                path = find_adapter_file(source, "ip-adapter", weight_name=weight, subfolder=part, **options)
                if encoder is None and image_encoder_folder is not None:
                    encoder = _encoder_beside(self, source, part, image_encoder_folder, options)
                source, name = read_adapter_file(path)[0], path
            files.append(read_ip_adapter(source, "The IP-Adapter" if name is source else str(name)))
        unet_layers.attach(self.part("unet"), files)
    if self.part("image_encoder") is None and encoder is not None:
        self.put("image_encoder", encoder)
    if self.part("feature_extractor") is None:
        size = _ENCODER_SIZE if encoder is None else encoder.config.image_size
        transformers: Any = import_module("transformers")
        self.put("feature_extractor", transformers.CLIPImageProcessor(size=size, crop_size=size))


def _encoder_beside(
    self: Parts, source: Any, part: str | None, folder: str, options: Mapping[str, Any]
) -> Any:
    """Load the image encoder of a repository or folder; of a single file, the one in its folder, if any."""
    path = Path(source).expanduser()
    if path.is_file():
        source, part = path.parent, None
        if not (source / folder).is_dir():
            return None
    wanted = f"{part.strip('/')}/{folder}" if part and "/" not in folder else folder
    checkpoint = Checkpoint.open(source, **options)
    return self.load_part(
        checkpoint.fetch([wanted]),
        wanted,
        _ENCODER,
        dtype=self.dtype,
        pickled=options["use_safetensors"] is False,
    )


def set_ip_adapter_scale(self: Parts, scale: Any) -> None:
    """Set the strength of the adapters from the next call on: a number for all, or a list with one for each.

    A scale by block is a mapping: {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}};
    blocks that it does not name get 0. A list within the list has a number for each image that has a mask.
    """
    _require_adapters(self, "set_ip_adapter_scale", parameter="scale")
    self.part("unet").encoder_hid_proj.scales = ip_adapter_scales(self, scale)


def ip_adapter_scales(self: Parts, scale: Any) -> list[Any]:
    """Return a scale for each adapter from the argument of `set_ip_adapter_scale`."""
    unet = self.part("unet")
    scales = list(scale) if isinstance(scale, list | tuple) else [scale]
    scales = scales * num_ip_adapters(self) if len(scales) == 1 else scales
    unet_layers.check_scales(unet, scales)
    return scales


def unload_ip_adapter(self: Parts) -> None:
    """Remove the adapters and the image encoder. The UNet is as before."""
    unet_layers.detach(self.part("unet"))
    self.put("image_encoder", None)
    if self.part("safety_checker") is None:  # it needs the feature extractor too
        self.put("feature_extractor", None)


def num_ip_adapters(self: Parts) -> int:
    """Return how many adapters the UNet has."""
    return len(unet_layers.projections(self.part("unet")))


def warn_if_unsaved(self: Parts) -> None:
    """Warn of adapters that `save_pretrained`, the caller, leaves out."""
    count = num_ip_adapters(self)
    if count:
        warnings.warn(
            f"The UNet is saved without the IP-Adapters ({count}), which stay in their own files. Load them "
            "again with load_ip_adapter, or call unload_ip_adapter() first.",
            stacklevel=3,
        )


@torch.no_grad()
def encode_image(
    self: Parts,
    image: Any,
    device: Any = None,
    num_images_per_prompt: int = 1,
    output_hidden_states: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative embeddings of pictures.

    They are (pictures, width), or (pictures, tokens, width) with `output_hidden_states`. `device` is accepted
    and ignored.
    """
    with self.using("image_encoder") as encoder:
        if not isinstance(image, Tensor):
            pictures = [_picture(part) for part in _listed(image)]
            image = self.part("feature_extractor")(pictures, return_tensors="pt").pixel_values
        pixels = image.to(self.device, next(encoder.parameters()).dtype)
        if output_hidden_states:
            found = tuple(
                encoder(part, output_hidden_states=True).hidden_states[-2]
                for part in (pixels, torch.zeros_like(pixels))
            )
        else:
            embeds = encoder(pixels).image_embeds
            found = embeds, torch.zeros_like(embeds)
    positive, negative = (part.repeat_interleave(num_images_per_prompt, 0) for part in found)
    return positive, negative


@torch.no_grad()
def prepare_ip_adapter_image_embeds(
    self: Parts,
    ip_adapter_image: Any,
    ip_adapter_image_embeds: Sequence[Tensor] | None = None,
    device: Any = None,
    num_images_per_prompt: int = 1,
    do_classifier_free_guidance: bool = True,
) -> list[Tensor]:
    """Return a tensor (rows, images, ...) for each adapter; with guidance the negative rows come first.

    `device` is accepted and ignored.
    """
    found = []
    if ip_adapter_image_embeds is None:
        layers = unet_layers.projections(self.part("unet"))
        for images, layer in zip(_per_adapter(ip_adapter_image), layers, strict=True):
            positive, negative = encode_image(self, images, output_hidden_states=layer.reads_states)
            found.append((positive[None], negative[None]))
    elif do_classifier_free_guidance:
        for part in ip_adapter_image_embeds:
            negative, positive = part.chunk(2)
            found.append((positive, negative))
    else:
        found = [(part, part) for part in ip_adapter_image_embeds]
    each = num_images_per_prompt
    return [
        torch.cat(
            [negative] * each + [positive] * each if do_classifier_free_guidance else [positive] * each
        ).to(self.device)
        for positive, negative in found
    ]


def check(self: Parts, call: Call) -> None:
    """Refuse images, embeddings and masks that do not match the adapters."""
    names = ("ip_adapter_image", "ip_adapter_image_embeds")
    given = [name for name in names if getattr(call, name) is not None]
    for name in given:
        _require_adapters(self, name, parameter=name)
    if call.ip_adapter_masks is not None:
        _require_adapters(self, "ip_adapter_masks", parameter="cross_attention_kwargs")
    count = num_ip_adapters(self)
    if not count:
        return
    if len(given) != 1:
        raise InputError(
            f"{'Both' if given else 'Neither'} of {' and '.join(names)} {'were' if given else 'was'} given "
            f"to a pipeline with {count} IP-Adapters. Give one of the two; to paint without an image, call "
            "unload_ip_adapter() first.",
            parameter=names[0],
        )
    if given == ["ip_adapter_image"]:
        images = _per_adapter(call.ip_adapter_image)
        if len(images) != count or not all(len(part) for part in images):
            raise InputError(
                f"ip_adapter_image has {len(images)} entries for {count} IP-Adapters. Give a list with one "
                "picture for each adapter, or a list of several in its place.",
                parameter="ip_adapter_image",
            )
        _check_encoder(self)
    else:
        is_guided = self.family.is_guided(self, call.guidance_scale)
        _check_embeds(self, call.ip_adapter_image_embeds, is_guided)
    _check_masks(self, call)


def _require_adapters(self: Parts, used: str, *, parameter: str) -> None:
    if not num_ip_adapters(self):
        raise InputError(
            f"{used} was used, but there is no IP-Adapter. Call load_ip_adapter first, or leave it out.",
            parameter=parameter,
        )


def _check_encoder(self: Parts) -> None:
    encoder = self.part("image_encoder")
    if encoder is None:
        raise InputError(
            "ip_adapter_image was given, but this pipeline has no image_encoder. Load one with "
            "load_ip_adapter(..., image_encoder_folder=...), set pipeline.image_encoder, or give "
            "ip_adapter_image_embeds.",
            parameter="ip_adapter_image",
        )
    for layer in unet_layers.projections(self.part("unet")):
        config = encoder.config
        width = config.hidden_size if layer.reads_states else config.projection_dim
        if width != layer.reads:
            raise InputError(
                f"The IP-Adapter reads images of width {layer.reads}, and the image_encoder gives {width}. "
                "They belong together: call load_ip_adapter with the image_encoder_folder that the adapter "
                "was made with (most: 'models/image_encoder', of width 1024 and 1280; some for SDXL: "
                "'sdxl_models/image_encoder', of width 1280 and 1664), after unload_ip_adapter().",
                parameter="ip_adapter_image",
            )


def _check_embeds(self: Parts, embeds: Any, is_guided: bool) -> None:
    layers = unet_layers.projections(self.part("unet"))
    is_list = isinstance(embeds, list | tuple) and all(isinstance(part, Tensor) for part in embeds)
    if not is_list or len(embeds) != len(layers):
        given = f"a list of {len(embeds)} tensors" if is_list else f"a {type(embeds).__name__}"
        raise InputError(
            f"ip_adapter_image_embeds is {given}, and not a list of tensors with one for each of "
            f"{len(layers)} IP-Adapters. Take it from prepare_ip_adapter_image_embeds.",
            parameter="ip_adapter_image_embeds",
        )
    for part, layer in zip(embeds, layers, strict=True):
        wanted = (4 if layer.reads_states else 3), layer.reads
        if (part.ndim, part.shape[-1]) != wanted or (is_guided and len(part) % 2):
            rows = "2 x rows" if is_guided else "rows"
            inner = "images, tokens" if layer.reads_states else "images"
            raise InputError(
                f"ip_adapter_image_embeds has a tensor {tuple(part.shape)}; this IP-Adapter takes "
                f"({rows}, {inner}, {layer.reads}){', the negative rows first' if is_guided else ''}. Take "
                "it from prepare_ip_adapter_image_embeds, with the same guidance.",
                parameter="ip_adapter_image_embeds",
            )


def _check_masks(self: Parts, call: Call) -> None:
    masks = call.ip_adapter_masks
    if masks is None:
        scales = self.part("unet").encoder_hid_proj.scales
        if any(isinstance(scale, list | tuple) for scale in scales):
            raise InputError(
                "set_ip_adapter_scale got a number for each image, which takes ip_adapter_masks. Give the "
                "masks, or one number for each adapter.",
                parameter="cross_attention_kwargs",
            )
        return
    if call.tile_size is not None:
        raise InputError(
            "ip_adapter_masks were given with tile_size. They cover the whole picture, but with tile_size "
            "the UNet sees it in windows. Leave one of them out.",
            parameter="tile_size",
        )
    listed = _listed_masks(masks)
    count = num_ip_adapters(self)
    fits = len(listed) == count and all(
        mask is None or (isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) == 1) for mask in listed
    )
    if not fits:
        raise InputError(
            f"ip_adapter_masks are not one tensor (1, images, height, width), or None, for each of {count} "
            "IP-Adapters. Make them with IPAdapterMaskProcessor().preprocess(masks, height, width) and "
            "reshape the result.",
            parameter="cross_attention_kwargs",
        )


def weighting(self: Parts, call: Call, *, prompts: int, rows: int, size: tuple[int, int]) -> Weighting | None:
    """Return how strongly the images of a call count, and where; None without adapters.

    `size` is the picture's height and width in pixels. The scales are those that the pipeline has now.
    """
    if not num_ip_adapters(self):
        return None
    scales = list(self.part("unet").encoder_hid_proj.scales)
    embeds = call.ip_adapter_image_embeds or ()
    halves = 1 + self.family.is_guided(self, call.guidance_scale)
    for part in embeds:
        if len(part) // halves not in (1, prompts, rows):
            raise InputError(
                f"ip_adapter_image_embeds has {len(part) // halves} rows in each half for {prompts} prompts. "
                "Give one for all, or one for each.",
                parameter="ip_adapter_image_embeds",
            )
    if call.ip_adapter_masks is None:
        return Weighting(scales)
    images = [part.shape[1] for part in embeds] or [len(part) for part in _per_adapter(call.ip_adapter_image)]
    masks = _listed_masks(call.ip_adapter_masks)
    for mask, count, scale in zip(masks, images, scales, strict=True):
        if mask is not None:
            _check_mask(mask, count, scale, size)
    moved = [None if mask is None else mask.to(self.device) for mask in masks]
    return Weighting(scales, moved, self.layout.size(*size))


def _check_mask(mask: Tensor, count: int, scale: Any, size: tuple[int, int]) -> None:
    """Refuse an adapter's masks that do not match its `count` images, its scale or the picture's size."""
    several = len(scale) if isinstance(scale, list | tuple) else count
    if not mask.shape[1] == count == several:
        raise InputError(
            f"ip_adapter_masks has {mask.shape[1]} masks for {count} images of an IP-Adapter, and {several} "
            "scales. Give a mask for each image, and one scale or as many.",
            parameter="cross_attention_kwargs",
        )
    (height, width), (mask_height, mask_width) = size, mask.shape[-2:]
    # Both may have been rounded to a multiple of eight.
    if abs(mask_width * height - mask_height * width) > 8 * max(mask_height, mask_width, height, width):
        raise InputError(
            f"ip_adapter_masks are {mask_width}x{mask_height}, and the picture is {width}x{height}. They "
            "cover the whole picture, in its shape. Make them with the same height and width.",
            parameter="cross_attention_kwargs",
        )


def conditioned(
    self: Parts, call: Call, conditioning: Conditioning, weighting: Weighting, rows: int
) -> Conditioning:
    """Return the conditioning with the images of a call added, for `rows` pictures."""
    is_guided = conditioning.negative is not None
    embeds = prepare_ip_adapter_image_embeds(
        self, call.ip_adapter_image, call.ip_adapter_image_embeds, None, 1, is_guided
    )
    halves = [part.chunk(2) if is_guided else (part,) for part in embeds]
    added = [
        {"image_embeds": [spread(part, rows) for part in half], "image_weighting": weighting}
        for half in zip(*halves, strict=True)
    ]
    return conditioning.with_added(added[-1], added[0] if is_guided else None)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed_masks(masks: Any) -> list[Any]:
    """Return the masks of each adapter. A tensor holds one mask for each adapter."""
    return list(masks.unsqueeze(1)) if isinstance(masks, Tensor) else _listed(masks)


def _per_adapter(given: Any) -> list[Any]:
    """Return the images of each adapter."""
    return [part if isinstance(part, Tensor) else _listed(part) for part in _listed(given)]


def _picture(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return plain_rgb(value, "ip_adapter_image")
    if isinstance(value, np.ndarray) and value.ndim == 3:
        return value
    raise InputError(
        f"ip_adapter_image holds a {type(value).__name__}; it takes PIL pictures, arrays (height, width, 3) "
        "or a tensor that feature_extractor made. Open files with load_image.",
        parameter="ip_adapter_image",
    )
