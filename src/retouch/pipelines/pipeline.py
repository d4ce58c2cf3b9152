"""A pipeline: named parts, a family, a task and attached adapters. A call of it becomes a run (run.py).

The classes that people know, with their call signatures, are in compat.py.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from retouch.adapters import ip_adapter, lora
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.single_file import names_single_file
from retouch.devices import available_devices, resolve_dtype
from retouch.errors import InputError
from retouch.families.call import Call, Task, make_call
from retouch.families.latents import LatentLayout
from retouch.images.processor import VaeImageProcessor
from retouch.kernels import int8_copy, int8_refusal, is_optimized, keeping_memory
from retouch.pipelines.inputs import Cache
from retouch.pipelines.loading import (
    fetched_parts,
    load_folder,
    load_single_file,
    named_parts,
    open_single_file,
    save_folder,
)
from retouch.pipelines.parts import NamedParts, PartNames
from retouch.pipelines.progress import check_preview_decoder
from retouch.pipelines.run import Run
from retouch.sampling.region import Region


class Pipeline(NamedParts):
    """Parts that belong together, and the calls that use them. A pipeline keeps nothing of a call."""

    task: ClassVar[Task]
    call_type: ClassVar[type[Call]] = Call
    region_class: ClassVar[type[Region]] = Region  # how the loop holds the rest of the picture
    unlisted_components: ClassVar[Mapping[str, str]] = {"preview_decoder": "AutoencoderTiny"}
    __call__: Callable[..., Any]  # each named class has the signature of its family

    vae: Any
    unet: Any

    def __init__(self, **components: Any) -> None:
        super().__init__(**components)
        self.scheduler = self.family.repair(self, self.scheduler, self.task)
        layout = self.layout
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=layout.multiple,
            vae_latent_channels=layout.channels,
            **self.family.picture_settings,
        )
        self.mask_processor = VaeImageProcessor(
            vae_scale_factor=layout.multiple,
            do_normalize=False,
            do_binarize=True,
            do_convert_grayscale=True,
        )
        self.control_image_processor = VaeImageProcessor(
            vae_scale_factor=layout.multiple, do_convert_rgb=True, do_normalize=False
        )

    def start(self, *args: Any, cache: Cache | None = None, **kwargs: Any) -> Run:
        """Begin a call with the arguments of `__call__`: iterate it step by step, then take `result()`.

        `cache` keeps text states and latents of pictures from one call to the next.
        """
        try:
            bound = inspect.signature(type(self).__call__).bind(self, *args, **kwargs)
        except TypeError as error:
            raise InputError(f"{type(self).__name__}: {error}. See help({type(self).__name__}).") from None
        return self._run(bound.arguments, cache)

    def _called(self, arguments: Mapping[str, Any]) -> Any:
        """Run a call to its end; `arguments` are the local variables of `__call__`."""
        with self.keeping_memory():
            return self._run(arguments).result()

    def _run(self, arguments: Mapping[str, Any], cache: Cache | None = None) -> Run:
        return Run(self, self._make_call(arguments), cache)

    def _make_call(self, arguments: Mapping[str, Any]) -> Call:
        given = {name: value for name, value in arguments.items() if name not in ("self", "unknown")}
        signature = inspect.signature(type(self).__call__).parameters
        control = self.controlnet_use
        return make_call(
            given | arguments.get("unknown", {}),
            self.task,
            [name for name in signature if name not in ("self", "unknown")],
            kind=self.call_type,
            own=self.family.arguments,
            control=None if control is None else control.arguments,
            renamed={} if control is None else {control.argument: "control_image"},
        )

    @property
    def layout(self) -> LatentLayout:
        """How the latents lie: channels, pixels for each latent, scale and shift."""
        return self.family.layout(self)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels for each latent along a side."""
        return self.layout.stride

    @property
    def default_size(self) -> int:
        """Side of the pictures that the checkpoint was trained on."""
        return self.family.default_size(self)

    @property
    def joins_mask(self) -> bool:
        """True for a checkpoint made for inpainting: its UNet takes the mask and the masked picture too."""
        return self.family.joins_mask(self)

    @property
    def keeps_original(self) -> bool:
        """True if the loop holds the latents outside the mask to the original."""
        return self.family.keeps_original(self)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: Any = None) -> Tensor:
        """Return latents of pixels in [-1, 1]: (batch, 3, height, width)."""
        return self.family.encode(self, pixels, generator)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels in [-1, 1] of latents."""
        return self.family.decode(self, latents)

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors that a callback can get."""
        family, control = self.family, self.controlnet_use
        names = ["latents", *family.tensors, *family.negative_tensors, *family.channel_tensors]
        return names if control is None else [*names, control.argument]

    @property
    def preview_decoder(self) -> Any:
        """An AutoencoderTiny for previews of a run; None: a linear map makes them."""
        return self._preview_decoder

    @preview_decoder.setter
    def preview_decoder(self, decoder: Any) -> None:
        if decoder is not None:
            check_preview_decoder(decoder, self.layout)
        self._preview_decoder = decoder

    def keeping_memory(self) -> AbstractContextManager[None]:
        """Return a context for one call or several in which optimized models on a CPU keep freed memory."""
        optimized = any(is_optimized(module) for module in self._modules().values())
        return keeping_memory() if optimized and self.device.type == "cpu" else nullcontext()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
        optimize: bool = True,
        **components: Any,
    ) -> Self:
        """Load a pipeline from a local folder or a hub repository, or from one file as `from_single_file`
        does.

        Further keywords replace a part (`unet=...`, `scheduler=...`) or leave an optional one out (None). The
        safety checker is loaded only with `safety_checker=True`. float16 on a machine that does not compute
        it well becomes bfloat16 or float32, with a warning. `optimize=False` keeps plain layers.
        """
        location: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "use_safetensors": use_safetensors,
        }
        wanted = dtype if dtype is not None else torch_dtype
        if names_single_file(name):
            if variant is not None:
                raise InputError(
                    f"{name} is one file, and variant={variant!r} chooses among the files of a folder. Leave "
                    "it out.",
                    parameter="variant",
                )
            return cls.from_single_file(name, dtype=wanted, optimize=optimize, **location, **components)
        checkpoint = Checkpoint.open(name, variant=variant, **location)
        given = cls.given_components(components)
        wanted = resolve_dtype(wanted, available_devices()[0])
        parts = load_folder(cls, checkpoint, given, wanted, pickled=use_safetensors is False)
        pipeline = cls(**parts)
        pipeline._source = checkpoint.name
        return pipeline.optimize(optimize)

    @classmethod
    def download(cls, name: str | os.PathLike[str], **location: Any) -> list[Path]:
        """Fetch the files that `from_pretrained` needs and load none of them; return their folders.

        `location` holds the keywords of `from_pretrained` that say where from and which files.
        """
        checkpoint = Checkpoint.open(name, **location)
        found = fetched_parts(cls, checkpoint, checkpoint.index(), cls.given_components({}))
        return list(dict.fromkeys(folder for _, _, folder, *_ in found))

    @classmethod
    def sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        return [(checkpoint, named_parts(cls, index, given))]

    @classmethod
    def from_single_file(
        cls,
        name: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        prediction_type: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
        optimize: bool = True,
        **components: Any,
    ) -> Self:
        """Load a pipeline from one file in the layout of the original Stable Diffusion programs.

        `name` is a path, 'org/name/file.safetensors' or the file's address on the hub. The tensors show what
        kind of checkpoint it is; `config` names the kind ("sd15", "sdxl", ...), or a folder or repository
        with settings for another architecture. `prediction_type` is detected too, unless it is given. Pickled
        files (.ckpt) are read only with `use_safetensors=False`. Further keywords are those of
        `from_pretrained`.
        """
        given = cls.given_components(components)
        if components.get("safety_checker") is True:
            raise InputError(
                "safety_checker=True asks for the one in the checkpoint, and a single file has none. Pass "
                "the safety checker of another pipeline, with its feature_extractor.",
                parameter="safety_checker",
            )
        file, kind = open_single_file(
            name,
            config,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            use_safetensors=use_safetensors,
        )
        wanted = resolve_dtype(dtype if dtype is not None else torch_dtype, available_devices()[0])
        parts = load_single_file(cls, file, kind, given, dtype=wanted, prediction_type=prediction_type)
        pipeline = cls(**parts)
        pipeline._source = file.name
        return pipeline.optimize(optimize)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write a folder that this library and diffusers load. A failure leaves nothing half-written."""
        if not safe_serialization:
            raise InputError(
                "safe_serialization=False asks for pickled weights. Only safetensors are written, which "
                "every reader of this layout knows; leave it out.",
                parameter="safe_serialization",
            )
        if self.family.takes_adapters:
            lora.warn_if_unsaved(self)
            ip_adapter.warn_if_unsaved(self)
        save_folder(self, folder, variant, max_shard_size)

    @property
    def why_not_int8(self) -> str | None:
        """The reason why the denoiser cannot multiply in 8 bits, in words; None if it can."""
        if self.device.type != "cpu":
            return f"the pipeline is on {self.device}, and int8 runs on the CPU only"
        refusal = int8_refusal(self.part(self.family.denoiser))
        if refusal is not None or not self.family.takes_adapters:
            return refusal
        if lora.get_list_adapters(self):
            return "LoRA adapters are loaded, whose layers are not rounded"
        return "IP-Adapters are loaded" if ip_adapter.num_ip_adapters(self) else None

    def with_int8(self) -> Self:
        """Return the same pipeline with a denoiser that multiplies in 8 bits: faster and a little less exact.

        It is a copy of the present weights, half the size of bfloat16; this pipeline keeps its own.
        """
        reason = self.why_not_int8
        if reason is not None:
            raise InputError(
                f"int8 was asked for, but {reason}. It needs a pipeline in float32 or bfloat16, on an x86 "
                "CPU, without adapters. Leave it out, or unload the adapters first.",
                parameter="int8",
            )
        name = self.family.denoiser
        return type(self).from_pipe(self, **{name: int8_copy(self.part(name))})

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in overlapping tiles, in less memory."""
        self.part(self.family.autoencoder).enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode in one piece."""
        self.part(self.family.autoencoder).disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode a batch one picture at a time."""
        self.part(self.family.autoencoder).enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode a batch in one piece."""
        self.part(self.family.autoencoder).disable_slicing()
