"""LoRA on a pipeline: load adapters, weigh them against each other, fuse them and remove them.

Adapters belong to the models. Pipelines that share a model, as `from_pipe` makes them, share its adapters.
The functions whose first parameter is `self` are methods of the pipelines.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from retouch.checkpoints.adapter_files import find_adapter_file, read_adapter_file
from retouch.checkpoints.lora import Layers, read_updates
from retouch.checkpoints.original_layout import origins
from retouch.errors import InputError, errors_about
from retouch.families.family import Parts
from retouch.families.registry import title_of_width
from retouch.models import lora as lora_layers

_MODELS = ("unet", "text_encoder", "text_encoder_2")


def load_lora_weights(
    self: Parts,
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

    `weight_name` is the file in a folder or repository with several. Without `adapter_name` the adapter is
    called default_0, the next default_1, and so on. `set_adapters` uses several adapters, or other weights.
    """
    given, metadata = pretrained_model_name_or_path_or_dict, None
    source = "The LoRA"
    models = _models(self)
    with errors_about("pretrained_model_name_or_path_or_dict"):
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
        updates = read_updates(
            given,
            {part: _layers(part, model) for part, model in models.items()},
            source,
            metadata=metadata,
            absent=[part for part in _MODELS if part in self.component_names and part not in models],
            title_of_width=title_of_width,
        )
    known = _known_adapters(self)
    if adapter_name is None:
        adapter_name = next(f"default_{i}" for i in range(len(known) + 1) if f"default_{i}" not in known)
    elif adapter_name in known:
        raise InputError(
            f"There is an adapter named {adapter_name} already. Each needs its own name. Give another "
            f"adapter_name, or call delete_adapters({adapter_name!r}) first.",
            parameter="adapter_name",
        )
    for part, of_layers in updates.items():
        lora_layers.attach(models[part], adapter_name, of_layers)
    set_adapters(self, adapter_name)


def set_adapters(self: Parts, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
    """Use exactly these adapters, each with its weight; None means 1.

    A weight may be a mapping with one number for each of "unet", "text_encoder" and "text_encoder_2".
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _require_adapters(self, names)
    several = isinstance(adapter_weights, list | tuple)
    weights = adapter_weights if several else [adapter_weights] * len(names)
    if len(weights) != len(names):
        raise InputError(
            f"{len(weights)} weights were given for {len(names)} adapters ({', '.join(names)}). Give one for "
            "each, or a single number for all.",
            parameter="adapter_weights",
        )
    fused = fused_loras(self).intersection(names)
    if fused and adapter_weights is not None:
        raise InputError(
            f"{', '.join(sorted(fused))} is part of the models' weights now, so its weight is fixed. Call "
            "unfuse_lora() first.",
            parameter="adapter_weights",
        )
    wanted = {
        part: {name: _weight_in(part, weight) for name, weight in zip(names, weights, strict=True)}
        for part in _MODELS
    }
    for part, model in _models(self).items():
        lora_layers.use(model, wanted[part])


def get_active_adapters(self: Parts) -> list[str]:
    """Return the names of the adapters in use."""
    used = [name for model in _models(self).values() for name in lora_layers.active(model)]
    return list(dict.fromkeys(used))


def get_list_adapters(self: Parts) -> dict[str, list[str]]:
    """Return the names of all adapters, for each model that has any."""
    found = {part: lora_layers.adapters(model) for part, model in _models(self).items()}
    return {part: names for part, names in found.items() if names}


def delete_adapters(self: Parts, adapter_names: str | Sequence[str]) -> None:
    """Remove these adapters. When the last one is gone, the models are as before the first."""
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _require_adapters(self, names)
    fused = fused_loras(self).intersection(names)
    if fused:
        raise InputError(
            f"{', '.join(sorted(fused))} is part of the models' weights now. Call unfuse_lora() first, or "
            "unload_lora_weights() to keep the weights and remove all adapters.",
            parameter="adapter_names",
        )
    for model in _models(self).values():
        lora_layers.detach(model, names)


def unload_lora_weights(self: Parts) -> None:
    """Remove all adapters. The models are as before, except for the adapters that `fuse_lora` fused."""
    for model in _models(self).values():
        lora_layers.detach(model)


def disable_lora(self: Parts) -> None:
    """Switch the adapters off until `enable_lora`."""
    for model in _models(self).values():
        lora_layers.enable(model, False)


def enable_lora(self: Parts) -> None:
    """Switch the adapters on again after `disable_lora`."""
    for model in _models(self).values():
        lora_layers.enable(model, True)


def fuse_lora(
    self: Parts,
    components: Sequence[str] | None = None,
    lora_scale: float = 1.0,
    safe_fusing: bool = False,
    adapter_names: Sequence[str] | None = None,
) -> None:
    """Make the adapters in use, or those named, part of the models' weights, which is faster.

    The original weights are kept in main memory for `unfuse_lora`, until `unload_lora_weights`. `safe_fusing`
    is accepted and ignored: loading refuses a file with NaN.
    """
    names = get_active_adapters(self) if adapter_names is None else list(adapter_names)
    _require_adapters(self, names)
    scale = _number(lora_scale, "lora_scale", "lora_scale")
    for model in _chosen(self, components):
        for layer in lora_layers.adapted(model):
            layer.fuse(names, scale)


def unfuse_lora(self: Parts, components: Sequence[str] | None = None) -> None:
    """Restore the weights that the models had before `fuse_lora`, bit for bit."""
    for model in _chosen(self, components):
        for layer in lora_layers.adapted(model):
            layer.unfuse()


def fused_loras(self: Parts) -> set[str]:
    """Return the names of the adapters that are part of the weights now."""
    return {name for model in _models(self).values() for name in lora_layers.fused(model)}


def num_fused_loras(self: Parts) -> int:
    """Return how many adapters are part of the weights now."""
    return len(fused_loras(self))


def unsaved(self: Parts) -> list[str]:
    """Return the names of the adapters in use that `save_pretrained` leaves out: those that are not fused."""
    fused = fused_loras(self)
    return [name for name in get_active_adapters(self) if name not in fused]


def warn_if_unsaved(self: Parts) -> None:
    """Warn of adapters in use that `save_pretrained`, the caller, leaves out."""
    left_out = unsaved(self)
    if left_out:
        warnings.warn(
            f"The models are saved without the adapters ({', '.join(left_out)}). To save the adapters as "
            "part of the weights, call fuse_lora() first.",
            stacklevel=3,
        )


def _models(self: Parts) -> dict[str, nn.Module]:
    """Return the models of a pipeline that can have adapters."""
    parts = {name: self.part(name) for name in _MODELS}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _chosen(self: Parts, components: Sequence[str] | None) -> list[nn.Module]:
    models = _models(self)
    unknown = [name for name in components or () if name not in models]
    if unknown:
        raise InputError(
            f"components names {', '.join(unknown)}; adapters can be in {', '.join(models)}. Leave it out "
            "for all of them.",
            parameter="components",
        )
    return [model for name, model in models.items() if components is None or name in components]


def _known_adapters(self: Parts) -> set[str]:
    return {name for names in get_list_adapters(self).values() for name in names}


def _require_adapters(self: Parts, names: Sequence[str]) -> None:
    known = _known_adapters(self)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"There is no adapter named {', '.join(unknown)}. Loaded: {', '.join(sorted(known)) or '-'}. "
            "Load one with load_lora_weights(..., adapter_name=...).",
            parameter="adapter_names",
        )


def _layers(part: str, model: nn.Module) -> Layers:
    """Return the layers of a model with the names that LoRA files give them."""
    shapes = lora_layers.shapes(model)
    original = {}
    if part == "unet":
        # The original program has no name for a distilled model's input of the guidance scale.
        names = [f"{name}.weight" for name in shapes if not name.endswith("cond_proj")]
        config: Any = model.config
        found = origins("UNet2DConditionModel", config, names)
        original = {
            name.removesuffix(".weight"): origin.name.removesuffix(".weight")
            for name, origin in found.items()
        }
    return Layers.of(shapes, original)


def _weight_in(part: str, weight: Any) -> float:
    """Return an adapter's weight in one model."""
    if isinstance(weight, Mapping):
        unknown = [name for name in weight if name not in _MODELS]
        if unknown:
            raise InputError(
                f"adapter_weights names {', '.join(map(str, unknown))}; a mapping has one weight for each of "
                f"{', '.join(_MODELS)}. Give those, or a number.",
                parameter="adapter_weights",
            )
        weight = weight.get(part)
    return 1.0 if weight is None else _number(weight, "A weight in adapter_weights", "adapter_weights")


def _number(value: Any, subject: str, parameter: str) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{subject} is {value!r:.80}; it takes a finite number.", parameter=parameter)
    return float(value)
