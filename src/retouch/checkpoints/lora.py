"""LoRA files of all common formats, read into one form: the updates of each model's layers.

Training programs spell the names of layers and of the two matrices of an update differently. This file knows
models only by the names and shapes of their layers.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retouch.checkpoints.contents import describe
from retouch.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# The end of a key -> the role of its tensor: a matrix of the update up @ down, a convolution between the two,
# or the number that scales the update.
_ROLES = {
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",  # diffusers
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",  # the same for text encoders
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers in 2023
    "_lora.up.weight": "up",
    ".lora_down.weight": "down",  # kohya-ss, and programs that follow it
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",  # LyCORIS
    ".alpha": "alpha",
}
# The beginning of a key -> its model. A key without one of these is for the UNet.
_PREFIXES = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_OTHER_KINDS = {
    r"\.(dora_scale|lora_magnitude_vector)": "DoRA",
    r"\.hada_(w|t)\d": "LoHa",
    r"\.lokr_(w|t)\d": "LoKr",
    r"\.oft_(blocks|diag|R)": "OFT",
    r"\.on_input$": "(IA)^3",
    r"\.diff(_b)?$": "full differences of weights",
}
_ACCEPTED = (
    "Accepted are LoRA files for Stable Diffusion 1.x, 2.x and XL in the formats of PEFT and diffusers "
    "(unet.<layer>.lora_A.weight, ...lora.down.weight, text_encoder.<layer>...) and of kohya-ss "
    "(lora_unet_<layer>.lora_down.weight, lora_te_..., lora_te1_..., lora_te2_..., .alpha)"
)
_ORIGINAL = re.compile(r"(input|output)_blocks_|middle_block_")
_OURS = re.compile(r"(down|up)_blocks|mid_block")


@dataclass(frozen=True)
class Update:
    """The update of one layer's weight: scale * up @ down."""

    down: Tensor  # (rank, ...), with the weight's other axes
    up: Tensor  # (outputs, rank)
    scale: float


@dataclass(frozen=True)
class Layers:
    """The layers of one model that can have an update."""

    shapes: Mapping[str, Sequence[int]]  # name -> shape of the weight
    spellings: Mapping[str, str]  # name in a file -> name

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], original: Mapping[str, str] | None = None) -> Layers:
        """Find the spellings of the layers; `original` has the names of the original program."""
        spellings = {}
        for name in shapes:
            forms = [name, (original or {}).get(name, name)]
            if name.startswith("encoder."):  # files have a level that transformers 5 removed
                forms.append(f"text_model.{name}")
            forms += [re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", form) for form in forms]
            forms += [form.removesuffix(".0") for form in forms if form.endswith(".to_out.0")]
            for form in forms:
                spellings[form] = spellings[form.replace(".", "_")] = name
        return cls(shapes, spellings)


@dataclass
class _Found:
    """The tensors that a file has for one layer."""

    key: str
    spelling: str
    tensors: dict[str, Tensor] = field(default_factory=dict)


def read_updates(
    state: Mapping[str, Tensor],
    models: Mapping[str, Layers],
    source: str,
    *,
    metadata: Mapping[str, str] | None = None,
    absent: Collection[str] = (),
    title_of_width: Callable[[int], str | None] = lambda width: None,
) -> dict[str, dict[str, Update]]:
    """Return the updates of a LoRA by model and layer; each tensor must have its place in `models`.

    `metadata` is that of a safetensors file, where diffusers keeps PEFT's settings. Tensors for a model that
    is `absent` are left out, with a warning. `title_of_width` names the models whose UNet reads text states
    of a width.
    """
    _refuse_other_kinds(state, source)
    state = _without_doubles(state, source)
    found: dict[tuple[str, str], _Found] = {}
    unknown, misplaced, left_out = [], [], []
    for key, tensor in state.items():
        split = _split(key)
        if split is None:
            unknown.append(key)
            continue
        model, spelling, role = split
        name = models[model].spellings.get(spelling) if model in models else None
        if model in absent:
            left_out.append(key)
        elif name is None:
            misplaced.append(key)
        else:
            part = found.setdefault((model, name), _Found(key, spelling))
            if role in part.tensors:
                raise CheckpointError(
                    f"{source} has two updates for one layer: {part.key} and {key}. Each layer may have one. "
                    f"Remove one of them, or save the file again."
                )
            part.tensors[role] = tensor
    if unknown or not state:
        raise CheckpointError(
            f"{source} has {len(unknown)} keys that do not belong to a LoRA: {_few(unknown)}. {_ACCEPTED}. "
            f"{_description(state)}"
        )
    if left_out:
        warnings.warn(
            f"{source} has {len(left_out)} tensors for {', '.join(absent)}, which this pipeline lacks, first "
            f"{left_out[0]}. They have no effect here. Load the pipeline with all of its parts to use them.",
            stacklevel=3,
        )
    settings = _settings(metadata, source)
    updates: dict[str, dict[str, Update]] = {}
    misshapen = []
    for (model, name), part in found.items():
        own = {key.removeprefix(f"{model}."): value for key, value in settings.items()}
        update = _make_update(part, own if f"{model}.r" in settings else {}, source)
        weight = tuple(models[model].shapes[name])
        if _trimmed(update.down.shape[1:]) != _trimmed(weight[1:]) or update.up.shape[0] != weight[0]:
            misshapen.append(f"{part.key}: {tuple(update.down.shape)} for a weight {weight}")
        updates.setdefault(model, {})[name] = update
    if misplaced or misshapen:
        raise CheckpointError(_explain_misfit(source, state, models, misplaced, misshapen, title_of_width))
    return updates


def _settings(metadata: Mapping[str, str] | None, source: str) -> dict[str, Any]:
    """Return PEFT's settings from the training of the LoRA."""
    try:
        return dict(json.loads((metadata or {}).get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{source} has a lora_adapter_metadata that is not a JSON dictionary ({error}). Alpha and rank "
            f"are read from it. Download or save the file again."
        ) from error


def _split(key: str) -> tuple[str, str, str] | None:
    """Split a key into its model, the spelling of its layer, and its role."""
    for end, role in _ROLES.items():
        if not key.endswith(end):
            continue
        layer = key[: -len(end)]
        for prefix, model in _PREFIXES.items():
            if layer.startswith(prefix):
                return model, layer[len(prefix) :].replace(".processor.", "."), role
        return "unet", layer.replace(".processor.", "."), role
    return None


def _refuse_other_kinds(state: Mapping[str, Any], source: str) -> None:
    for pattern, kind in _OTHER_KINDS.items():
        keys = [key for key in state if re.search(pattern, key)]
        if keys:
            raise CheckpointError(
                f"{source} holds {kind}, not plain LoRA: {_few(keys)}. {_ACCEPTED}. Look for a plain version "
                f"of it, or merge it into a checkpoint with the program that made it."
            )


def _without_doubles(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Drop the original names of UNet layers from files that merging programs wrote with both kinds."""
    original = {key for key in state if _ORIGINAL.search(key)}
    if not original or not any(_OURS.search(key) for key in state):
        return state
    warnings.warn(
        f"{source} has two kinds of names for layers of the UNet: those of the original program "
        f"({len(original)} keys, first {min(original)}) and those of diffusers. The latter are used, as in "
        f"diffusers. Remove the former from the file to avoid this warning.",
        stacklevel=4,
    )
    return {key: tensor for key, tensor in state.items() if key not in original}


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without ones at its end: a 1x1 convolution then has the shape of a linear layer."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _make_update(part: _Found, settings: Mapping[str, Any], source: str) -> Update:
    import torch

    tensors = part.tensors
    if "down" not in tensors or "up" not in tensors:
        missing = "up" if "down" in tensors else "down"
        raise CheckpointError(
            f"{source} has {part.key} without its {missing} matrix. Each update needs both. Download or save "
            f"the file again."
        )
    down, up, mid, rank = tensors["down"], tensors["up"].flatten(1), tensors.get("mid"), len(tensors["down"])
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(
            f"{source} has NaN or infinite values in {part.key}. Its training failed, or it is damaged. "
            f"Download it again, or use another."
        )
    if up.shape[1] != rank or (mid is not None and mid.shape[:2] != (rank, rank)):
        raise CheckpointError(
            f"{source} has matrices of different ranks for {part.spelling}: {rank} and {up.shape[1]}. They "
            f"must be the same. Download or save the file again."
        )
    if mid is not None:  # a 1x1 convolution and a kernel together are one kernel
        down = torch.einsum("abhw,bi->aihw", mid.float(), down.flatten(1).float())
    return Update(down, up, _scale(tensors.get("alpha"), settings, part.spelling, rank))


def _scale(alpha: Tensor | None, settings: Mapping[str, Any], spelling: str, rank: int) -> float:
    """Return alpha over rank, or 1 without an alpha."""
    if alpha is not None:
        return float(alpha) / rank
    if not settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    fitting = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", spelling))
    strength = float(next(fitting, settings.get("lora_alpha", rank)))
    return strength / (rank**0.5 if settings.get("use_rslora") else rank)


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _description(state: Mapping[str, Any]) -> str:
    """Return a description of a file that is not a LoRA, with advice."""
    noun, advice = describe(state)
    if noun == "a textual inversion embedding":
        advice = "Use load_textual_inversion"
    return "Check that it is the right file." if noun == "a LoRA" else f"This is {noun}. {advice}."


def _explain_misfit(
    source: str,
    state: Mapping[str, Tensor],
    models: Mapping[str, Layers],
    misplaced: Sequence[str],
    misshapen: Sequence[str],
    title_of_width: Callable[[int], str | None],
) -> str:
    """Return the message for a LoRA whose layers are missing here or have other shapes."""
    reasons = []
    if misplaced:
        reasons.append(
            f"{len(misplaced)} keys name layers that this pipeline does not have ({_few(misplaced)})"
        )
    if misshapen:
        reasons.append(f"{len(misshapen)} updates are of other shapes than their layers ({_few(misshapen)})")
    theirs, ours = _width_of_file(state), _width_of_models(models)
    if theirs is None or ours is None or theirs == ours:
        advice = "A LoRA fits the kind of model that it was made for. Check which model this one is for."
    else:
        titles = [title_of_width(width) for width in (theirs, ours)]
        theirs_named, ours_named = (
            f"{width} ({title})" if title else str(width)
            for width, title in zip((theirs, ours), titles, strict=True)
        )
        advice = (
            f"It was made for another family of models: its UNet reads text of width {theirs_named}, the "
            f"UNet here text of width {ours_named}. Use it with a checkpoint of its own family."
        )
    return f"{source} does not fit: {', and '.join(reasons)}. {advice}"


def _width_of_file(state: Mapping[str, Tensor]) -> int | None:
    """Return the width of the text states that the LoRA's UNet reads."""
    for key, tensor in state.items():
        split = _split(key)
        if split and split[0] == "unet" and split[2] == "down" and re.search("attn2.to_[kv]$", split[1]):
            return int(tensor.shape[1])
    return None


def _width_of_models(models: Mapping[str, Layers]) -> int | None:
    """Return the width of the text states that the UNet here reads."""
    layers = models["unet"].shapes if "unet" in models else {}
    return next((int(shape[1]) for name, shape in layers.items() if name.endswith("attn2.to_k")), None)
