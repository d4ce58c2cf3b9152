"""Parts that belong together: their names, loading and saving them, and where they run.

What a pipeline does with its parts is in pipeline.py; how a single one is read and written in components.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from tqdm.auto import tqdm

from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.single_file import names_single_file
from retouch.devices import available_devices, resolve_device, resolve_dtype
from retouch.errors import InputError
from retouch.models.prepared.prepare import is_chosen, prepare, unprepare
from retouch.pipelines.components import index_entry, load_component, plain, save_component, subfolders
from retouch.pipelines.placement import ModelOffload, Placement, Resident, SequentialOffload
from retouch.pipelines.single_file import load_parts, open_single_file, require_family

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("retouch")

_LAYOUT_VERSION = "0.42.0"  # the reference's release whose folder layout we write; its readers look for it


PartNames = dict[str, tuple[str, str]]  # what a pipeline calls a part: its name in a checkpoint, its class


# Loading options of the reference that ask for nothing here with these values: old code runs, and what would
# have to be heeded is refused. Loading takes no more memory than the weights need anyway.
_NEEDLESS: Mapping[str, Collection[Any]] = {
    "low_cpu_mem_usage": (None, True, False),
    "resume_download": (None, True, False),
    "add_watermarker": (None, False),
    **dict.fromkeys(
        ("device_map", "max_memory", "custom_pipeline", "quantization_config", "proxies"), (None,)
    ),
}


class PipelineConfig(dict[str, Any]):
    """A pipeline's settings, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"This pipeline's config has no {name}. It has {', '.join(self)}.") from None


class Bundle:
    """Base of the pipelines: named parts, and switches that are saved beside them."""

    component_names: ClassVar[tuple[str, ...]]
    optional_components: ClassVar[tuple[str, ...]] = ()
    # Switches that model_index.json holds beside the parts, with their defaults.
    switches: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **components: Any) -> None:
        for name, default in self.switches.items():
            setattr(self, name, components.pop(name, default))
        unknown = [name for name in components if name not in self.component_names]
        missing = [
            name
            for name in self.component_names
            if name not in self.optional_components and components.get(name) is None
        ]
        if unknown or missing:
            raise InputError(
                f"{type(self).__name__} was given {', '.join(components) or 'nothing'}; "
                + (f"it lacks {', '.join(missing)}" if missing else f"it does not know {', '.join(unknown)}")
                + f". Its parts are {', '.join(self.component_names)}."
            )
        for name in self.component_names:
            setattr(self, name, components.get(name))
        self.placement: Placement = Resident(self, self._found_device())
        self._progress_bar: dict[str, Any] = {}
        self._source = ""

    def __copy__(self) -> Self:
        """The same parts, of which each can be exchanged without a change to the other's."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _progress_bar=dict(self._progress_bar))
        twin.placement = self.placement.shared_by(twin)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        if plain(value) is not value:
            unprepare(plain(value))  # a compiler makes its own kernels, and wants to see plain layers
        super().__setattr__(name, value)

    def _found_device(self) -> torch.device:
        for module in self._modules().values():
            for parameter in module.parameters():
                return parameter.device
        return torch.device("cpu")

    def _modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, ready to build another pipeline from."""
        return {name: getattr(self, name) for name in self.component_names}

    @property
    def config(self) -> PipelineConfig:
        """The settings that model_index.json holds."""
        parts = {name: index_entry(part) for name, part in self.components.items()}
        header = {"_class_name": type(self).__name__, "_diffusers_version": _LAYOUT_VERSION}
        return PipelineConfig(header | {name: getattr(self, name) for name in self.switches} | parts)

    @property
    def name_or_path(self) -> str:
        """What this pipeline was loaded from."""
        return self._source

    @property
    def device(self) -> torch.device:
        """Where calls run."""
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the models."""
        models = (parameter for module in self._modules().values() for parameter in module.parameters())
        return next((model.dtype for model in models if model.is_floating_point()), torch.float32)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in self.components.items() if part)
        source = f"{self._source!r}, " if self._source else ""
        return f"{type(self).__name__}({source}{parts}, device={self.device}, dtype={self.dtype})"

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
        """A pipeline from a local folder or a hub repository, or from one file as `from_single_file` does.

        Further keywords replace a part (`unet=...`, `scheduler=...`) or leave an optional one out (None).
        The safety checker is loaded only with `safety_checker=True`. float16 on a machine whose devices do
        not compute it well becomes bfloat16 or float32, with a warning. `optimize=False` leaves out
        what `optimize()` does.
        """
        if names_single_file(name):
            if variant is not None:
                raise InputError(
                    f"{name} is one file, and variant={variant!r} chooses among the files of a folder. Leave "
                    f"it out."
                )
            return cls.from_single_file(
                name,
                dtype=dtype if dtype is not None else torch_dtype,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                use_safetensors=use_safetensors,
                optimize=optimize,
                **components,
            )
        checkpoint = Checkpoint.open(
            name,
            revision=revision,
            variant=variant,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            use_safetensors=use_safetensors,
        )
        pipeline = cls._from_checkpoint(
            checkpoint, dtype if dtype is not None else torch_dtype, use_safetensors is False, components
        )
        return pipeline.optimize(optimize)

    @classmethod
    def _from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype | str | None,
        pickled: bool,
        components: Mapping[str, Any],
    ) -> Self:
        given = cls._component_arguments(components)
        wanted = resolve_dtype(dtype, available_devices()[0])
        index = checkpoint.index()
        given = {name: index[name] for name in cls.switches if name in index} | given
        parts = dict(given)
        found = cls._fetched(checkpoint, index, given)
        for part, source, folder, name, class_name in tqdm(
            found, desc="Loading", unit="part", disable=None, leave=False
        ):
            variant = source.variant_in(name)
            parts[part] = load_component(
                folder, name, class_name, variant=variant, dtype=wanted, pickled=pickled
            )
        pipeline = cls(**parts)
        pipeline._source = checkpoint.name
        return pipeline

    @classmethod
    def download(cls, name: str | os.PathLike[str], **location: Any) -> list[Path]:
        """Fetch all that `from_pretrained` needs, and load none of it; the folders that it is in.

        `location`: the keywords of `from_pretrained` that say where from and which files.
        """
        checkpoint = Checkpoint.open(name, **location)
        found = cls._fetched(checkpoint, checkpoint.index(), cls._component_arguments({}))
        return list(dict.fromkeys(folder for _, _, folder, *_ in found))

    @classmethod
    def _fetched(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[str, Checkpoint, Path, str, str]]:
        """Of each part that is not given: its name, and where it is, on this machine now."""
        found = []
        for source, names in cls._sources(checkpoint, index, given):
            homes = {part: (source.home_of(name), kind) for part, (name, kind) in names.items()}
            folder = source.fetch(subfolders(dict(homes.values())))
            found += [(part, source, folder, *entry) for part, entry in homes.items()]
        return found

    @classmethod
    def _sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """Which checkpoints the parts that are not given come from."""
        return [(checkpoint, cls._named(index, given))]

    @classmethod
    def _named(
        cls, index: Mapping[str, Any], given: Collection[str], rename: Callable[[str], str] = str
    ) -> PartNames:
        """The parts that an index names; `rename` tells what this pipeline calls one of them."""
        return {
            rename(name): (name, entry[1])
            for name, entry in index.items()
            if rename(name) in cls.component_names
            and rename(name) not in given
            and isinstance(entry, list)
            and entry[1]
        }

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
        """A pipeline from one file in the layout of the original Stable Diffusion programs.

        `name` is a path, 'org/name/file.safetensors' or the file's address on the hub. What kind of
        checkpoint it is shows in its tensors; `config` names the kind ("sd15", "sdxl", ...), or a folder or
        repository with settings for another architecture. `prediction_type` is found out too, unless it is
        given. Pickled files (.ckpt) are read only with `use_safetensors=False`. Further keywords are as for
        `from_pretrained`.
        """
        given = cls._component_arguments(components)
        if components.get("safety_checker") is True:
            raise InputError(
                "safety_checker=True asks for the one in the checkpoint, and a single file has none. Pass "
                "the safety checker of another pipeline, with its feature_extractor."
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
        require_family(file, kind, cls)
        switches = {key: value for key, value in kind.switches.items() if key in cls.switches}
        parts = load_parts(
            file,
            kind,
            given,
            dtype=resolve_dtype(dtype if dtype is not None else torch_dtype, available_devices()[0]),
            prediction_type=prediction_type,
        )
        pipeline = cls(**{**switches, **parts})
        pipeline._source = file.name
        return pipeline.optimize(optimize)

    @classmethod
    def _component_arguments(cls, components: Mapping[str, Any]) -> dict[str, Any]:
        """The parts that the caller gives or leaves out."""
        known = (*cls.component_names, *cls.switches)
        given = {
            name: part
            for name, part in components.items()
            if name in known or part not in _NEEDLESS.get(name, ())
        }
        unknown = [name for name in given if name not in known]
        if unknown:
            advice = " Move a loaded pipeline with to(device), or enable_model_cpu_offload()."
            raise InputError(
                f"{cls.__name__} cannot be made with {', '.join(unknown)}. Beside the options of the "
                f"help text it takes the parts {', '.join(cls.component_names)}."
                + (advice if "device_map" in unknown else "")
            )
        return given

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write a folder that this library and diffusers load. Nothing half-written is left on failure."""
        if not safe_serialization:
            raise InputError(
                "safe_serialization=False asks for pickled weights. Only safetensors are written, which "
                "every reader of this layout knows; leave it out."
            )
        target = Path(folder).absolute()
        if target.is_file():
            raise InputError(f"{target} is a file; save_pretrained needs a folder's path.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            staged = Path(temporary)
            for name, part in self.components.items():
                if part is not None:
                    save_component(part, staged / name, variant, max_shard_size)
            # Of the switches only those that are set: not each front of the reference knows them all.
            defaults = self.switches.items()
            index = {key: value for key, value in self.config.items() if (key, value) not in defaults}
            (staged / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            for source in sorted(path for path in staged.rglob("*") if path.is_file()):
                place = target / source.relative_to(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, place)

    @classmethod
    def from_pipe(cls, pipeline: Bundle, **components: Any) -> Self:
        """The same parts behind another front; nothing is copied."""
        shared = {name: part for name, part in pipeline.components.items() if name in cls.component_names}
        shared |= {name: getattr(pipeline, name) for name in cls.switches if hasattr(pipeline, name)}
        given = cls._component_arguments(components)
        other = cls(**{**given, **shared, **{name: given[name] for name in components if name in given}})
        other.placement = pipeline.placement.shared_by(other)
        other._progress_bar = dict(pipeline._progress_bar)
        other._source = pipeline._source
        return other

    def to(
        self, *args: Any, device: Any = None, dtype: Any = None, silence_dtype_warnings: bool = False
    ) -> Self:
        """Move the models to a device, convert them to a dtype, or both."""
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = value
        place = self.device if device is None else resolve_device(device)
        wanted = resolve_dtype(dtype, place)
        for module in self._modules().values():
            module.to(device=place, dtype=wanted)
            if is_chosen(module):
                prepare(module)
        self.placement = Resident(self, place)
        return self

    def optimize(self, is_on: bool = True) -> Self:
        """Let the models compute in the way that suits this machine's CPU or GPU, or as plain layers again.

        The results are the same up to rounding. A part that torch.compile wrapped is left to it.
        """
        for module in self._modules().values():
            if plain(module) is module:
                prepare(module) if is_on else unprepare(module)
        return self

    def _offload(
        self, strategy: type[ModelOffload] | type[SequentialOffload], gpu_id: int | None, device: Any
    ) -> None:
        if gpu_id is not None and available_devices() != ["cpu"]:  # a number means nothing without any
            device = f"cuda:{gpu_id}"
        place = resolve_device(device if device is not None else available_devices()[0])
        if place.type == "cpu":
            return  # everything is in main memory already
        for module in self._modules().values():
            module.to("cpu")
        self.placement = strategy(self, place)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep models in main memory, and on the accelerator only the one in use. Without one, no change."""
        self._offload(ModelOffload, gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep only the layer in use on the accelerator: the least memory, and slow."""
        self._offload(SequentialOffload, gpu_id, device)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Accepted for old code: attention is memory-efficient already."""
        _say_once("enable_xformers_memory_efficient_attention")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Accepted for old code."""

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Accepted for old code: attention is memory-efficient already."""
        _say_once("enable_attention_slicing")

    def disable_attention_slicing(self) -> None:
        """Accepted for old code."""

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments for tqdm, such as `disable=True`."""
        self._progress_bar = kwargs

    def progress_bar(self, total: int) -> Any:
        """The bar that a call shows."""
        return tqdm(total=total, **self._progress_bar)


_said: set[str] = set()


def _say_once(name: str) -> None:
    if name not in _said:
        _said.add(name)
        logger.warning("%s() has nothing to do: attention here is memory-efficient from the start.", name)
