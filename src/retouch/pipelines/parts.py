"""The named parts of a pipeline: sharing and exchanging them, and where and how they run.

Loading and saving is in loading.py; calls are in pipeline.py.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from tqdm.auto import tqdm

from retouch.adapters.controlnet import ControlNetUse
from retouch.checkpoints.ignored import is_ignored
from retouch.checkpoints.locate import Checkpoint
from retouch.devices import available_devices, resolve_device, resolve_dtype
from retouch.errors import InputError
from retouch.families.family import Family
from retouch.kernels import is_optimized, optimize, restore
from retouch.pipelines.components import index_entry, load_component, plain
from retouch.pipelines.placement import ModelOffload, Placement, Resident, SequentialOffload

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("retouch")

_LAYOUT_VERSION = "0.42.0"  # the reference's release whose folder layout we write; its readers look for it


PartNames = dict[str, tuple[str, str]]  # a pipeline's name of a part -> its name in the checkpoint, its class


class PipelineConfig(dict[str, Any]):
    """A pipeline's settings, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"This pipeline's config has no {name}. It has {', '.join(self)}.") from None


class NamedParts:
    """Base of the pipelines: parts as attributes, and switches that are saved with them."""

    family: ClassVar[Family]
    controlnet_use: ClassVar[ControlNetUse | None] = None
    component_names: ClassVar[tuple[str, ...]] = ()
    optional_components: ClassVar[tuple[str, ...]] = ()
    # Optional parts, with their classes, that a folder may hold and the reference does not know, so that its
    # model_index.json does not name them.
    unlisted_components: ClassVar[Mapping[str, str]] = {}

    scheduler: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "family"):
            cls.component_names = tuple(cls.family.components)
            cls.optional_components = tuple(cls.family.optional)
            if cls.controlnet_use is not None:
                cls.component_names += ("controlnet",)

    def __init__(self, **components: Any) -> None:
        for name in self.family.ignored_settings:
            components.pop(name, None)
        for name, default in self.family.switches.items():
            setattr(self, name, components.pop(name, default))
        if self.controlnet_use is not None:
            components = self.controlnet_use.prepared(components)
        names = (*self.component_names, *self.unlisted_components)
        unknown = [name for name in components if name not in names]
        missing = [
            name
            for name in self.component_names
            if name not in self.optional_components and components.get(name) is None
        ]
        if unknown or missing:
            raise InputError(
                f"{type(self).__name__} was given {', '.join(components) or 'nothing'}; "
                + (f"it lacks {', '.join(missing)}" if missing else f"it does not know {', '.join(unknown)}")
                + f". Its parts are {', '.join(names)}.",
                parameter=(missing or unknown)[0],
            )
        for name in names:
            setattr(self, name, components.get(name))
        self.placement: Placement = Resident(self, self._found_device())
        self._progress_bar: dict[str, Any] = {}
        self._source = ""

    def __copy__(self) -> Self:
        """Return a pipeline with the same parts; exchanging one does not change the other pipeline."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _progress_bar=dict(self._progress_bar))
        twin.placement = self.placement.shared_by(twin)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        if plain(value) is not value:
            restore(plain(value))  # a compiler makes its own kernels and needs plain layers
        super().__setattr__(name, value)

    def _found_device(self) -> torch.device:
        for module in self._modules().values():
            for parameter in module.parameters():
                return parameter.device
        return torch.device("cpu")

    def _modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.all_components.items() if isinstance(part, nn.Module)}

    def part(self, name: str) -> Any:
        """Return a part by name, without a compiler's wrapper; None where the pipeline has none."""
        return plain(getattr(self, name, None))

    def put(self, name: str, part: Any) -> None:
        """Set a part. A model moves to the pipeline's device, unless the pipeline is offloaded."""
        if isinstance(part, nn.Module) and type(self.placement) is Resident:
            part.to(self.device)
        setattr(self, name, part)

    def load_part(
        self, folder: Path, subfolder: str, class_name: str, *, dtype: torch.dtype | None, pickled: bool
    ) -> Any:
        """Load one part from the folder of a checkpoint on this machine."""
        return load_component(folder, subfolder, class_name, variant=None, dtype=dtype, pickled=pickled)

    def using(self, name: str) -> AbstractContextManager[Any]:
        """Return a context in which the part is where it can run."""
        return self.placement.using(name)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, ready to build another pipeline from."""
        return {name: getattr(self, name) for name in self.component_names}

    @property
    def all_components(self) -> dict[str, Any]:
        """The parts by name, with those that the reference does not know."""
        return self.components | {name: getattr(self, name) for name in self.unlisted_components}

    @property
    def config(self) -> PipelineConfig:
        """The settings that model_index.json holds."""
        parts = {name: index_entry(part) for name, part in self.components.items()}
        header = {"_class_name": type(self).__name__, "_diffusers_version": _LAYOUT_VERSION}
        switches = {name: getattr(self, name) for name in self.family.switches}
        return PipelineConfig(header | switches | parts)

    @property
    def name_or_path(self) -> str:
        """The folder, file or repository that this pipeline was loaded from."""
        return self._source

    @property
    def device(self) -> torch.device:
        """The device on which calls run."""
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
    def from_pipe(cls, pipeline: NamedParts, **components: Any) -> Self:
        """Return a pipeline of this class with another one's parts; nothing is copied."""
        if "vae" in components and cls.family.autoencoder != "vae":
            components[cls.family.autoencoder] = components.pop("vae")
        names = (*cls.component_names, *cls.unlisted_components)
        shared = {name: part for name, part in pipeline.all_components.items() if name in names}
        shared |= {name: getattr(pipeline, name) for name in cls.family.switches if hasattr(pipeline, name)}
        given = cls.given_components(components)
        other = cls(**{**given, **shared, **{name: given[name] for name in components if name in given}})
        other.placement = pipeline.placement.shared_by(other)
        other._progress_bar = dict(pipeline._progress_bar)
        other._source = pipeline._source
        return other

    @classmethod
    def sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """Return the checkpoints that the parts come from, with the names of the parts in each."""
        raise NotImplementedError

    @classmethod
    def given_components(cls, components: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts that a caller gives or leaves out; refuse unknown keywords."""
        components = cls.family.given_components(components)
        parts = (*cls.component_names, *cls.unlisted_components)
        known = (*parts, *cls.family.switches)
        given = {
            name: part for name, part in components.items() if name in known or not is_ignored(name, part)
        }
        unknown = [name for name in given if name not in known]
        if unknown:
            advice = " Move a loaded pipeline with to(device), or enable_model_cpu_offload()."
            raise InputError(
                f"{cls.__name__} cannot be made with {', '.join(unknown)}. In addition to the options in its "
                f"help "
                f"it takes the parts {', '.join(parts)}." + (advice if "device_map" in unknown else ""),
                parameter=unknown[0],
            )
        return given

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
            if is_optimized(module):
                optimize(module)
        self.placement = Resident(self, place)
        return self

    def optimize(self, is_on: bool = True) -> Self:
        """Use layers that are optimized for this machine, or plain layers again.

        The results are the same up to rounding. Parts that torch.compile wrapped stay as they are.
        """
        for module in self._modules().values():
            if plain(module) is module:
                optimize(module) if is_on else restore(module)
        return self

    def _offload(
        self, strategy: type[ModelOffload] | type[SequentialOffload], gpu_id: int | None, device: Any
    ) -> None:
        if gpu_id is not None and available_devices() != ["cpu"]:  # without a GPU a number has no meaning
            device = f"cuda:{gpu_id}"
        place = resolve_device(device if device is not None else available_devices()[0])
        if place.type == "cpu":
            return  # everything is in main memory already
        for module in self._modules().values():
            module.to("cpu")
            if is_optimized(module):
                optimize(module)
        self.placement = strategy(self, place)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep models in main memory, and only the one in use on the accelerator. No effect without one."""
        self._offload(ModelOffload, gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep only the layer in use on the accelerator: the least memory, and slow."""
        self._offload(SequentialOffload, gpu_id, device)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Accept a call from old code: attention is always memory-efficient."""
        _say_once("enable_xformers_memory_efficient_attention")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Accept a call from old code."""

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Accept a call from old code: attention is always memory-efficient."""
        _say_once("enable_attention_slicing")

    def disable_attention_slicing(self) -> None:
        """Accept a call from old code."""

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set arguments for tqdm, such as `disable=True`."""
        self._progress_bar = kwargs

    def progress_bar(self, total: int) -> Any:
        """Return the progress bar of a call."""
        return tqdm(total=total, **self._progress_bar)


_said: set[str] = set()


def _say_once(name: str) -> None:
    if name not in _said:
        _said.add(name)
        logger.warning("%s() has no effect: attention is always memory-efficient here.", name)
