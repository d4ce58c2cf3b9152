"""IP-Adapter by the familiar methods: adapters are loaded, weighed and taken away.

They belong to the UNet, so pipelines that share it share them. What calls show them is in image_prompts.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.ip_adapter import IPAdapterFile, read_ip_adapter
from retouch.checkpoints.locate import Checkpoint
from retouch.errors import InputError
from retouch.models import ip_adapter
from retouch.pipelines.components import load_component, plain
from retouch.pipelines.image_prompts import ImagePrompts, listed
from retouch.pipelines.placement import Resident

_ENCODER = "CLIPVisionModelWithProjection"
_SIZE = 224  # of the pictures that CLIP's encoders see, where there is none to ask


class IPAdapters(ImagePrompts):
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
        given = listed(pretrained_model_name_or_path_or_dict)
        weights, subfolders = listed(weight_name), listed(subfolder)
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
