"""LoRA by the familiar methods: adapters are loaded, weighed against each other, fused and taken away.

They belong to the models. Pipelines that share a model, as `from_pipe` makes them, share its adapters.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.lora import Layers, read_updates
from retouch.checkpoints.original_layout import origins
from retouch.errors import InputError
from retouch.models import lora
from retouch.pipelines.components import plain

_MODELS = ("unet", "text_encoder", "text_encoder_2")

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline as _Base
else:
    _Base = object


class Adapters(_Base):
    """The part of a pipeline that deals with LoRA."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
    ) -> None:
        """Load a LoRA from a file, a folder, a hub repository or its tensors, and use it and no other.

        `weight_name` is the file in a folder or repository with several. Without `adapter_name` it is
        default_0 and so on. `set_adapters` uses several at a time, or one at another weight.
        """
        given, metadata = pretrained_model_name_or_path_or_dict, None
        source = "The LoRA"
        if not isinstance(given, Mapping):
            path = find_adapter_file(
                given,
                "pytorch_lora_weights",
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                use_safetensors=use_safetensors,
            )
            source = str(path)
            given, metadata = read_adapter_file(path)
        models = self._adaptable()
        updates = read_updates(
            given,
            {part: _layers(part, model) for part, model in models.items()},
            source,
            metadata=metadata,
            absent=[part for part in _MODELS if part in self.component_names and part not in models],
        )
        known = {name for names in self.get_list_adapters().values() for name in names}
        if adapter_name is None:
            adapter_name = next(f"default_{i}" for i in range(len(known) + 1) if f"default_{i}" not in known)
        elif adapter_name in known:
            raise InputError(
                f"There is an adapter named {adapter_name} already. Each needs a name of its own. Give "
                f"another adapter_name, or call delete_adapters({adapter_name!r}) first."
            )
        for part, of_layers in updates.items():
            lora.attach(models[part], adapter_name, of_layers)
        self.set_adapters(adapter_name)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Use exactly these adapters, each with its weight: 1 if None.

        A weight may be a mapping with one for each of "unet", "text_encoder" and "text_encoder_2".
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require_adapters(names)
        several = isinstance(adapter_weights, list | tuple)
        weights = adapter_weights if several else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InputError(
                f"{len(weights)} weights were given for {len(names)} adapters ({', '.join(names)}). Give one "
                "for each, or a single number for all."
            )
        fused = self.fused_loras.intersection(names)
        if fused and adapter_weights is not None:
            raise InputError(
                f"{', '.join(sorted(fused))} is part of the models' weights now, so its weight is fixed. "
                "Call unfuse_lora() first."
            )
        wanted = {
            part: {name: _weight_in(part, weight) for name, weight in zip(names, weights, strict=True)}
            for part in _MODELS
        }
        for part, model in self._adaptable().items():
            lora.use(model, wanted[part])

    def get_active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        used = [name for model in self._adaptable().values() for name in lora.active(model)]
        return list(dict.fromkeys(used))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all adapters, for each model that has any."""
        found = {part: lora.adapters(model) for part, model in self._adaptable().items()}
        return {part: names for part, names in found.items() if names}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters. When the last is gone, the models are as before the first."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require_adapters(names)
        fused = self.fused_loras.intersection(names)
        if fused:
            raise InputError(
                f"{', '.join(sorted(fused))} is part of the models' weights now. Call unfuse_lora() first, "
                "or unload_lora_weights() to keep the weights and forget all adapters."
            )
        for model in self._adaptable().values():
            lora.detach(model, names)

    def unload_lora_weights(self) -> None:
        """Forget all adapters. The models are as before, except for what `fuse_lora` made part of them."""
        for model in self._adaptable().values():
            lora.detach(model)

    def disable_lora(self) -> None:
        """Paint without the adapters until `enable_lora`."""
        for model in self._adaptable().values():
            lora.enable(model, False)

    def enable_lora(self) -> None:
        """Use the adapters in use again."""
        for model in self._adaptable().values():
            lora.enable(model, True)

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make the adapters in use, or those named, part of the models' weights, which is faster.

        The weights as they were are kept in main memory for `unfuse_lora`, until `unload_lora_weights`.
        `safe_fusing` is accepted for old code: a file with NaN is refused when it is loaded.
        """
        names = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        self._require_adapters(names)
        scale = _number(lora_scale, "lora_scale")
        for model in self._chosen(components):
            for layer in lora.adapted(model):
                layer.fuse(names, scale)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Give the models the weights back that they had before `fuse_lora`, bit for bit."""
        for model in self._chosen(components):
            for layer in lora.adapted(model):
                layer.unfuse()

    @property
    def fused_loras(self) -> set[str]:
        """The names of the adapters that are part of the weights now."""
        return {name for model in self._adaptable().values() for name in lora.fused(model)}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are part of the weights now."""
        return len(self.fused_loras)

    def save_pretrained(self, folder: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder that this library and diffusers load. Nothing half-written is left on failure."""
        left_out = [name for name in self.get_active_adapters() if name not in self.fused_loras]
        if left_out:
            warnings.warn(
                f"What is saved has the weights without the adapters ({', '.join(left_out)}). To save them "
                f"as a part of the weights, call fuse_lora() first.",
                stacklevel=2,
            )
        super().save_pretrained(folder, *args, **kwargs)

    def _adaptable(self) -> dict[str, nn.Module]:
        parts = {name: plain(self.components.get(name)) for name in _MODELS}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def _chosen(self, components: Sequence[str] | None) -> list[nn.Module]:
        models = self._adaptable()
        unknown = [name for name in components or () if name not in models]
        if unknown:
            raise InputError(
                f"components names {', '.join(unknown)}; adapters can be in {', '.join(models)}. Leave it "
                "out for all of them."
            )
        return [model for name, model in models.items() if components is None or name in components]

    def _require_adapters(self, names: Sequence[str]) -> None:
        known = {name for names in self.get_list_adapters().values() for name in names}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(
                f"There is no adapter named {', '.join(unknown)}. Loaded: {', '.join(sorted(known)) or '-'}. "
                "Load one with load_lora_weights(..., adapter_name=...)."
            )


def _layers(part: str, model: nn.Module) -> Layers:
    shapes = lora.shapes(model)
    original = {}
    if part == "unet":
        # A distilled model's input for the guidance scale is nothing that the original program knows.
        names = [f"{name}.weight" for name in shapes if not name.endswith("cond_proj")]
        config: Any = model.config
        found = origins("UNet2DConditionModel", config, names)
        original = {
            name.removesuffix(".weight"): origin.name.removesuffix(".weight")
            for name, origin in found.items()
        }
    return Layers.of(shapes, original)


def _weight_in(part: str, weight: Any) -> float:
    if isinstance(weight, Mapping):
        unknown = [name for name in weight if name not in _MODELS]
        if unknown:
            raise InputError(
                f"adapter_weights names {', '.join(map(str, unknown))}; a mapping has one weight for each of "
                f"{', '.join(_MODELS)}. Give those, or a number."
            )
        weight = weight.get(part)
    return 1.0 if weight is None else _number(weight, "A weight in adapter_weights")


def _number(value: Any, name: str) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r:.80}; it takes a finite number.")
    return float(value)
