"""LoRA files: which layer each of their tensors is for, whatever program wrote them.

Programs differ in how they spell a layer's name and the two sides of its update. Both are read here into
one form; models are known by the names and shapes of their layers alone.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retouch.checkpoints.contents import what_it_is
from retouch.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# How a key ends, and what its tensor then is: of the update up @ down, of a convolution between the two, or
# the number that sets the strength of the whole.
_ENDS = {
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",  # diffusers
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",  # the same for text encoders
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers in 2023
    "_lora.up.weight": "up",
    ".lora_down.weight": "down",  # kohya-ss, and who follows it
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",  # LyCORIS
    ".alpha": "alpha",
}
# How a key begins, and which model it is for. Without any of these it is for the UNet.
_BEGINNINGS = {
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
# What tells the families apart: the width of the text that their UNets read.
_FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "SDXL",
    1280: "the SDXL refiner",
}


@dataclass(frozen=True)
class Update:
    """The update of one layer's weight: scale * up @ down, with the rank in the middle."""

    down: Tensor  # (rank, ...) and the weight's other axes
    up: Tensor  # (outputs, rank)
    scale: float


@dataclass(frozen=True)
class Layers:
    """The layers of one model that an update can be for."""

    shapes: Mapping[str, Sequence[int]]  # of their weights, by name
    spellings: Mapping[str, str]  # what files call them -> name

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], original: Mapping[str, str] | None = None) -> Layers:
        """With the spellings that are in use; `original` has the original program's names, where known."""
        spellings = {}
        for name in shapes:
            forms = [name, (original or {}).get(name, name)]
            if name.startswith("encoder."):  # transformers 5 took out the level that files have
                forms.append(f"text_model.{name}")
            forms += [re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", form) for form in forms]
            forms += [form.removesuffix(".0") for form in forms if form.endswith(".to_out.0")]
            for form in forms:
                spellings[form] = spellings[form.replace(".", "_")] = name
        return cls(shapes, spellings)


@dataclass
class _Found:
    """What a file holds for one layer."""

    key: str
    spelled: str
    tensors: dict[str, Tensor] = field(default_factory=dict)


def read_updates(
    state: Mapping[str, Tensor],
    models: Mapping[str, Layers],
    source: str,
    *,
    metadata: Mapping[str, str] | None = None,
    absent: Collection[str] = (),
) -> dict[str, dict[str, Update]]:
    """The updates of a LoRA by model and layer; refused unless every tensor has its place in `models`.

    `metadata` is what a safetensors file says of itself, in which diffusers keeps PEFT's settings. What is
    for a model that is `absent` is left out, with a warning.
    """
    _refuse_other_kinds(state, source)
    state = _without_doubles(state, source)
    found: dict[tuple[str, str], _Found] = {}
    unknown, homeless, left_out = [], [], []
    for key, tensor in state.items():
        parted = _parted(key)
        if parted is None:
            unknown.append(key)
            continue
        model, spelled, role = parted
        name = models[model].spellings.get(spelled) if model in models else None
        if model in absent:
            left_out.append(key)
        elif name is None:
            homeless.append(key)
        else:
            part = found.setdefault((model, name), _Found(key, spelled))
            if role in part.tensors:
                raise CheckpointError(
                    f"{source} has two updates for one layer: {part.key} and {key}. Each layer has one. Take "
                    f"one of them out, or save the file again."
                )
            part.tensors[role] = tensor
    if unknown or not state:
        raise CheckpointError(
            f"{source} has {len(unknown)} keys that are no part of a LoRA: {_few(unknown)}. {_ACCEPTED}. "
            f"{_what_else(state)}"
        )
    if left_out:
        warnings.warn(
            f"{source} has {len(left_out)} tensors for {', '.join(absent)}, which this pipeline lacks, first "
            f"{left_out[0]}. They have no effect here. Load the pipeline with all of its parts to use them.",
            stacklevel=3,
        )
    settings = _settings(metadata, source)
    updates: dict[str, dict[str, Update]] = {}
    misfits = []
    for (model, name), part in found.items():
        own = {key.removeprefix(f"{model}."): value for key, value in settings.items()}
        update = _joined(part, own if f"{model}.r" in settings else {}, source)
        weight = tuple(models[model].shapes[name])
        if _trimmed(update.down.shape[1:]) != _trimmed(weight[1:]) or update.up.shape[0] != weight[0]:
            misfits.append(f"{part.key}: {tuple(update.down.shape)} for a weight {weight}")
        updates.setdefault(model, {})[name] = update
    if homeless or misfits:
        raise CheckpointError(_misfit(source, state, models, homeless, misfits))
    return updates


def _settings(metadata: Mapping[str, str] | None, source: str) -> dict[str, Any]:
    """What PEFT was told when the LoRA was trained."""
    try:
        return dict(json.loads((metadata or {}).get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{source} has a lora_adapter_metadata that is no JSON dictionary ({error}). Alpha and rank are "
            f"read from there. Download or save the file again."
        ) from error


def _parted(key: str) -> tuple[str, str, str] | None:
    """A key's model, its layer as spelled there, and its role."""
    for end, role in _ENDS.items():
        if not key.endswith(end):
            continue
        layer = key[: -len(end)]
        for beginning, model in _BEGINNINGS.items():
            if layer.startswith(beginning):
                return model, layer[len(beginning) :].replace(".processor.", "."), role
        return "unet", layer.replace(".processor.", "."), role
    return None


def _refuse_other_kinds(state: Mapping[str, Any], source: str) -> None:
    for pattern, kind in _OTHER_KINDS.items():
        keys = [key for key in state if re.search(pattern, key)]
        if keys:
            raise CheckpointError(
                f"{source} holds {kind}, not plain LoRA: {_few(keys)}. {_ACCEPTED}. Look for a plain version "
                f"of it, or have it merged into a checkpoint by the program that made it."
            )


def _without_doubles(state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Merging programs left files that name the UNet's layers in both ways; diffusers takes its own."""
    original = {key for key in state if _ORIGINAL.search(key)}
    if not original or not any(_OURS.search(key) for key in state):
        return state
    warnings.warn(
        f"{source} names layers of the UNet in two ways, as the original program does ({len(original)} keys, "
        f"first {min(original)}) and as diffusers does. The latter are used, as there. Take the former out "
        f"of the file to be rid of this message.",
        stacklevel=4,
    )
    return {key: tensor for key, tensor in state.items() if key not in original}


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the ones at its end, by which a 1x1 convolution differs from a linear layer."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _joined(part: _Found, settings: Mapping[str, Any], source: str) -> Update:
    import torch

    tensors = part.tensors
    if "down" not in tensors or "up" not in tensors:
        missing = "up" if "down" in tensors else "down"
        raise CheckpointError(
            f"{source} has {part.key} without the {missing} side of it. Each update has "
            f"both. Download or save the file again."
        )
    down, up, mid, rank = tensors["down"], tensors["up"].flatten(1), tensors.get("mid"), len(tensors["down"])
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(
            f"{source} has NaN or infinite values in {part.key}. Its training failed, or it is damaged. "
            f"Download it again, or use another."
        )
    if up.shape[1] != rank or (mid is not None and mid.shape[:2] != (rank, rank)):
        raise CheckpointError(
            f"{source} has sides of different ranks for {part.spelled}: {rank} and {up.shape[1]}. They must "
            f"be the same. Download or save the file again."
        )
    if mid is not None:  # a kernel between two 1x1 convolutions is a kernel
        down = torch.einsum("abhw,bi->aihw", mid.float(), down.flatten(1).float())
    return Update(down, up, _scale(tensors.get("alpha"), settings, part.spelled, rank))


def _scale(alpha: Tensor | None, settings: Mapping[str, Any], spelled: str, rank: int) -> float:
    """Alpha over rank. Without an alpha the matrices are meant as they are."""
    if alpha is not None:
        return float(alpha) / rank
    if not settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    fitting = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", spelled))
    strength = float(next(fitting, settings.get("lora_alpha", rank)))
    return strength / (rank**0.5 if settings.get("use_rslora") else rank)


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _what_else(state: Mapping[str, Any]) -> str:
    """A guess at what a file is that should have been a LoRA, and what to do with it."""
    noun, advice = what_it_is(state)
    if noun == "a textual inversion embedding":
        advice = "Use load_textual_inversion"
    return "Check that it is the right file." if noun == "a LoRA" else f"This is {noun}. {advice}."


def _misfit(
    source: str,
    state: Mapping[str, Tensor],
    models: Mapping[str, Layers],
    homeless: Sequence[str],
    misfits: Sequence[str],
) -> str:
    """What to say of a LoRA whose layers are not there, or are of another shape."""
    reasons = []
    if homeless:
        reasons.append(
            f"{len(homeless)} keys name layers that this pipeline does not have ({_few(homeless)})"
        )
    if misfits:
        reasons.append(f"{len(misfits)} updates are of other shapes than their layers ({_few(misfits)})")
    theirs, ours = _text_width(state), _width_read(models)
    if theirs is None or ours is None or theirs == ours:
        cure = "A LoRA fits the kind of model that it was made for. Check what this one is for."
    else:
        cure = (
            f"It was made for another family of models: its UNet reads text of width {_named(theirs)}, the "
            f"UNet here text of width {_named(ours)}. Use it with a checkpoint of its own family."
        )
    return f"{source} does not fit: {', and '.join(reasons)}. {cure}"


def _named(width: int) -> str:
    return f"{width} ({_FAMILIES[width]})" if width in _FAMILIES else str(width)


def _text_width(state: Mapping[str, Tensor]) -> int | None:
    """The width of the text that the LoRA's UNet reads."""
    for key, tensor in state.items():
        parted = _parted(key)
        if parted and parted[0] == "unet" and parted[2] == "down" and re.search("attn2.to_[kv]$", parted[1]):
            return int(tensor.shape[1])
    return None


def _width_read(models: Mapping[str, Layers]) -> int | None:
    """The width of the text that the UNet here reads."""
    layers = models["unet"].shapes if "unet" in models else {}
    return next((int(shape[1]) for name, shape in layers.items() if name.endswith("attn2.to_k")), None)
