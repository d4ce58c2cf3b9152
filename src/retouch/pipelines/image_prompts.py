"""Images beside the prompt: what a call shows the UNet's IP-Adapters, how much of it counts, and where.

All of it is the call's own. Loading adapters is in ip_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch.errors import InputError
from retouch.images.modes import plain_rgb
from retouch.models import ip_adapter
from retouch.models.ip_adapter import Weighting
from retouch.pipelines.components import plain
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.request import Request
from retouch.sampling.conditioning import Conditioning

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline as _Base
else:
    _Base = object


class ImagePrompts(_Base):
    """The part of a pipeline that shows images to its model."""

    feature_extractor: Any

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


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed_masks(masks: Any) -> list[Any]:
    """A tensor has a mask for each adapter."""
    return list(masks.unsqueeze(1)) if isinstance(masks, Tensor) else listed(masks)


def _per_adapter(given: Any) -> list[Any]:
    return [part if isinstance(part, Tensor) else listed(part) for part in listed(given)]


def _picture(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return plain_rgb(value, "ip_adapter_image")
    if isinstance(value, np.ndarray) and value.ndim == 3:
        return value
    raise InputError(
        f"ip_adapter_image holds a {type(value).__name__}; it takes PIL pictures, arrays (height, width, 3) "
        "or a tensor that feature_extractor made. Open files with load_image."
    )
