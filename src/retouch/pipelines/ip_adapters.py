"""IP-Adapter by the familiar methods: images that a picture should resemble, beside its prompt.

The adapters belong to the UNet, so pipelines that share it share them. What a call shows them, how much that
counts and where is the call's own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.ip_adapter import IPAdapterFile, read_ip_adapter
from retouch.checkpoints.locate import Checkpoint
from retouch.errors import InputError
from retouch.images.modes import plain_rgb
from retouch.models import ip_adapter
from retouch.models.ip_adapter import Weighting
from retouch.pipelines.components import load_component, plain
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.placement import Resident
from retouch.pipelines.request import Request
from retouch.sampling.conditioning import Conditioning

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline as _Base
else:
    _Base = object

_ENCODER = "CLIPVisionModelWithProjection"
_SIZE = 224  # of the pictures that CLIP's encoders see, where there is none to ask


class IPAdapters(_Base):
    """The part of a pipeline that deals with IP-Adapters."""

    def load_ip_adapter(
        self,
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

        They take the place of those loaded before, each at the scale 1. A pipeline without an image encoder
        gets the one in `image_encoder_folder`, which is inside `subfolder`, or a path from the repository's
        root if it has a slash in it. None loads none: calls then take `ip_adapter_image_embeds`.
        """
        options: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "use_safetensors": use_safetensors,
        }
        given = _listed(pretrained_model_name_or_path_or_dict)
        weights, subfolders = _listed(weight_name), _listed(subfolder)
        count = max(len(given), len(weights), len(subfolders))
        named = {
            "pretrained_model_name_or_path_or_dict": given,
            "subfolder": subfolders,
            "weight_name": weights,
        }
        for argument, values in named.items():
            if len(values) not in (1, count):
                raise InputError(
                    f"{argument} has {len(values)} entries for {count} IP-Adapters. Give one for all, or a "
                    "list with one for each."
                )
        sources, subfolders, weights = (
            values * count if len(values) == 1 else values for values in named.values()
        )
        files, encoder = [], plain(self.components["image_encoder"])
        for source, part, weight in zip(sources, subfolders, weights, strict=True):
            name: Any = source
            if not isinstance(source, Mapping):
                path = find_adapter_file(source, "ip-adapter", weight_name=weight, subfolder=part, **options)
                if encoder is None and image_encoder_folder is not None:
                    encoder = self._encoder_beside(source, part, image_encoder_folder, options)
                source, name = read_adapter_file(path)[0], path
            files.append(read_ip_adapter(source, "The IP-Adapter" if name is source else str(name)))
        self._set_ip_adapters(files, encoder)

    def _encoder_beside(self, source: Any, part: str | None, folder: str, options: Mapping[str, Any]) -> Any:
        """The image encoder of a repository or folder; of a single file, the one in its folder, if any."""
        path = Path(source).expanduser()
        if path.is_file():
            source, part = path.parent, None
            if not (source / folder).is_dir():
                return None
        wanted = f"{part.strip('/')}/{folder}" if part and "/" not in folder else folder
        checkpoint = Checkpoint.open(source, **options)
        return load_component(
            checkpoint.fetch([wanted]),
            wanted,
            _ENCODER,
            variant=None,
            dtype=self.dtype,
            pickled=options["use_safetensors"] is False,
        )

    def _set_ip_adapters(self, files: Sequence[IPAdapterFile], encoder: Any) -> None:
        ip_adapter.attach(plain(self.unet), files)
        if self.components["image_encoder"] is None and encoder is not None:
            if type(self.placement) is Resident:
                encoder.to(self.device)
            self.image_encoder = encoder
        if self.components["feature_extractor"] is None:
            size = _SIZE if encoder is None else encoder.config.image_size
            transformers: Any = import_module("transformers")
            self.feature_extractor = transformers.CLIPImageProcessor(size=size, crop_size=size)

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """How much the adapters count from the next call on: a number for all, or a list with one for each.

        By block it is a mapping: {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}; what
        is not named has none. A list within the list has a number for each image that has a mask.
        """
        self._require_ip_adapters("set_ip_adapter_scale")
        plain(self.unet).encoder_hid_proj.scales = self.ip_adapter_scales(scale)

    def ip_adapter_scales(self, scale: Any) -> list[Any]:
        """A scale for each adapter, out of what `set_ip_adapter_scale` takes."""
        unet = plain(self.unet)
        count = len(ip_adapter.projections(unet))
        scales = list(scale) if isinstance(scale, list | tuple) else [scale]
        scales = scales * count if len(scales) == 1 else scales
        ip_adapter.check_scales(unet, scales)
        return scales

    def unload_ip_adapter(self) -> None:
        """Forget the adapters and the image encoder. The UNet is as before."""
        ip_adapter.detach(plain(self.unet))
        self.image_encoder = None
        if self.components.get("safety_checker") is None:  # which reads pictures with it, too
            self.feature_extractor = None

    def save_pretrained(self, folder: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder that this library and diffusers load. Nothing half-written is left on failure."""
        if self.num_ip_adapters:
            warnings.warn(
                f"What is saved has the UNet without the IP-Adapters ({self.num_ip_adapters}), which stay "
                "files of their own. Load them again with load_ip_adapter, or call unload_ip_adapter() "
                "first.",
                stacklevel=2,
            )
        super().save_pretrained(folder, *args, **kwargs)

    @property
    def num_ip_adapters(self) -> int:
        """How many adapters the UNet has."""
        return len(ip_adapter.projections(plain(self.unet)))

    def _require_ip_adapters(self, what: str) -> None:
        if not self.num_ip_adapters:
            raise InputError(
                f"{what} was used, but there is no IP-Adapter. Call load_ip_adapter first, or leave it out."
            )

    def check_ip_adapters(self, request: Request) -> None:
        """Refuse what the adapters cannot be shown."""
        names = ("ip_adapter_image", "ip_adapter_image_embeds")
        given = [name for name in names if getattr(request, name) is not None]
        count, masks = self.num_ip_adapters, (request.cross_attention_kwargs or {}).get("ip_adapter_masks")
        for name in given if masks is None else [*given, "ip_adapter_masks"]:
            self._require_ip_adapters(name)
        if not count:
            return
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'Neither of ' + ' and '.join(names)} was given to a pipeline with "
                f"{count} IP-Adapters. Give one of the two; to paint without an image, call "
                "unload_ip_adapter() first."
            )
        if given == ["ip_adapter_image"]:
            images = _per_adapter(request.ip_adapter_image)
            if len(images) != count or not all(len(part) for part in images):
                raise InputError(
                    f"ip_adapter_image has {len(images)} entries for {count} IP-Adapters. Give a list with "
                    "one picture for each adapter, or a list of several in its place."
                )
            self._check_encoder()
        else:
            self._check_embeds(request.ip_adapter_image_embeds, self.uses_guidance(request.guidance_scale))
        self._check_masks(request, masks)

    def _check_encoder(self) -> None:
        encoder = plain(self.components["image_encoder"])
        if encoder is None:
            raise InputError(
                "ip_adapter_image was given, but this pipeline has no image_encoder. Load one with "
                "load_ip_adapter(..., image_encoder_folder=...), set pipeline.image_encoder, or give "
                "ip_adapter_image_embeds."
            )
        for project in ip_adapter.projections(plain(self.unet)):
            config = encoder.config
            width = config.hidden_size if project.reads_states else config.projection_dim
            if width != project.reads:
                raise InputError(
                    f"The IP-Adapter reads images of width {project.reads}, and the image_encoder gives "
                    f"{width}. They belong together: call load_ip_adapter with the image_encoder_folder that "
                    "the adapter was made with (most: 'models/image_encoder', of width 1024 and 1280; some "
                    "for SDXL: 'sdxl_models/image_encoder', of width 1280 and 1664), after "
                    "unload_ip_adapter()."
                )

    def _check_embeds(self, embeds: Any, is_guided: bool) -> None:
        layers = ip_adapter.projections(plain(self.unet))
        is_list = isinstance(embeds, list | tuple) and all(isinstance(part, Tensor) for part in embeds)
        if not is_list or len(embeds) != len(layers):
            raise InputError(
                f"ip_adapter_image_embeds is {type(embeds).__name__} "
                f"{len(embeds) if is_list else ''} and not a list of tensors, one for each of "
                f"{len(layers)} IP-Adapters. Take it from prepare_ip_adapter_image_embeds."
            )
        for part, layer in zip(embeds, layers, strict=True):
            wanted = (4 if layer.reads_states else 3), layer.reads
            if (part.ndim, part.shape[-1]) != wanted or (is_guided and len(part) % 2):
                rows = "2 x rows" if is_guided else "rows"
                inner = "images, tokens" if layer.reads_states else "images"
                raise InputError(
                    f"ip_adapter_image_embeds has a tensor {tuple(part.shape)}; this IP-Adapter takes "
                    f"({rows}, {inner}, {layer.reads})"
                    f"{', the negative rows first' if is_guided else ''}. Take it from "
                    "prepare_ip_adapter_image_embeds, with the same guidance."
                )

    def _check_masks(self, request: Request, masks: Any) -> None:
        if masks is None:
            has_lists = [
                isinstance(scale, list | tuple) for scale in plain(self.unet).encoder_hid_proj.scales
            ]
            if any(has_lists):
                raise InputError(
                    "set_ip_adapter_scale got a number for each image, which takes ip_adapter_masks. Give "
                    "the masks, or one number for each adapter."
                )
            return
        if request.tile_size is not None:
            raise InputError(
                "ip_adapter_masks were given with tile_size. They are of the whole picture, which is seen in "
                "windows then. Leave one of them out."
            )
        listed = _listed_masks(masks)
        fits = len(listed) == self.num_ip_adapters and all(
            mask is None or (isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) == 1)
            for mask in listed
        )
        if not fits:
            raise InputError(
                f"ip_adapter_masks are not one tensor (1, images, height, width), or None, for each of "
                f"{self.num_ip_adapters} IP-Adapters. Make them with IPAdapterMaskProcessor().preprocess("
                "masks, height, width) and reshape what it returns."
            )

    def shown(self, run: Any, conditioning: Conditioning) -> Conditioning:
        """The conditioning of a run, and the images beside it."""
        if not self.num_ip_adapters:
            return conditioning
        request = run.request
        is_guided = conditioning.negative is not None
        embeds = self.prepare_ip_adapter_image_embeds(
            request.ip_adapter_image, request.ip_adapter_image_embeds, None, 1, is_guided
        )
        halves = [part.chunk(2) if is_guided else (part,) for part in embeds]
        told = [
            {"image_embeds": [run.spread(part) for part in side], "image_weighting": run.image_weighting}
            for side in zip(*halves, strict=True)
        ]
        return conditioning.also(told[-1], told[0] if is_guided else None)

    def start(self, *args: Any, **kwargs: Any) -> PictureRun:
        run = super().start(*args, **kwargs)
        if self.num_ip_adapters:
            run.image_weighting = self._weighting(run)
        return run

    def _weighting(self, run: PictureRun) -> Weighting:
        """How much the images of a run count: what the pipeline has now, and where the masks are."""
        scales = list(plain(self.unet).encoder_hid_proj.scales)
        given = run.request.ip_adapter_image_embeds
        sides = 1 + run.guidance.active
        for part in given or ():
            if len(part) // sides not in (1, run.prompts, run.rows):
                raise InputError(
                    f"ip_adapter_image_embeds has {len(part) // sides} rows on each side for {run.prompts} "
                    "prompts. Give one for all, or one for each."
                )
        masks = (run.request.cross_attention_kwargs or {}).get("ip_adapter_masks")
        if masks is None:
            return Weighting(scales)
        images = [part.shape[1] for part in given or ()] or [
            len(part) for part in _per_adapter(run.request.ip_adapter_image)
        ]
        height, width = run.pictures.height, run.pictures.width
        listed = _listed_masks(masks)
        for mask, count, scale in zip(listed, images, scales, strict=True):
            if mask is None:
                continue
            several = len(scale) if isinstance(scale, list | tuple) else count
            if not mask.shape[1] == count == several:
                raise InputError(
                    f"ip_adapter_masks has {mask.shape[1]} masks for {count} images of an IP-Adapter, and "
                    f"{several} scales. Give a mask for each image, and one scale or as many."
                )
            high, wide = mask.shape[-2:]
            # Both may have been brought to a multiple of eight.
            if abs(wide * height - high * width) > 8 * max(high, wide, height, width):
                raise InputError(
                    f"ip_adapter_masks are {wide}x{high}, and the picture is {width}x{height}. They are of "
                    "the whole picture, in its shape. Make them with the same height and width."
                )
        factor = self.vae_scale_factor
        there = [None if mask is None else mask.to(self.device) for mask in listed]
        return Weighting(scales, there, (height // factor, width // factor))

    @torch.no_grad()
    def encode_image(
        self,
        image: Any,
        device: Any = None,
        num_images_per_prompt: int = 1,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of pictures (pictures, width), or states (pictures, tokens, width); and of none."""
        with self.placement.using("image_encoder") as encoder:
            if not isinstance(image, Tensor):
                pictures = [
                    _picture(part) for part in (image if isinstance(image, list | tuple) else [image])
                ]
                image = self.feature_extractor(pictures, return_tensors="pt").pixel_values
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
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> list[Tensor]:
        """For each adapter (rows, images, ...): with guidance the negative rows, then the positive ones."""
        found = []
        if ip_adapter_image_embeds is None:
            layers = ip_adapter.projections(plain(self.unet))
            for images, layer in zip(_per_adapter(ip_adapter_image), layers, strict=True):
                positive, negative = self.encode_image(images, output_hidden_states=layer.reads_states)
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


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed_masks(masks: Any) -> list[Any]:
    """A tensor has a mask for each adapter."""
    return list(masks.unsqueeze(1)) if isinstance(masks, Tensor) else _listed(masks)


def _per_adapter(given: Any) -> list[Any]:
    return [part if isinstance(part, Tensor) else _listed(part) for part in _listed(given)]


def _picture(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return plain_rgb(value, "ip_adapter_image")
    if isinstance(value, np.ndarray) and value.ndim == 3:
        return value
    raise InputError(
        f"ip_adapter_image holds a {type(value).__name__}; it takes PIL pictures, arrays (height, width, 3) "
        "or a tensor that feature_extractor made. Open files with load_image."
    )
