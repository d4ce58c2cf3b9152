"""LoRA files for a pipeline's models, in the spelling of each training program."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

ATTENTION = r"\.(to_q|to_k|to_v|to_out\.0)$"
TEXT = r"\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)$"


@dataclass(frozen=True)
class Side:
    """The tensors that a file has for one layer."""

    down: Tensor
    up: Tensor
    alpha: float


Sides = Mapping[str, Mapping[str, Side]]  # by model and layer


def sides(
    pipeline: Any, *, unet: str = "", text: str | None = TEXT, rank: int = 4, alpha: Any = 2.0, seed: int = 0
) -> Sides:
    """Return random updates for the layers of a pipeline whose names match; `text` is for its text encoders.

    `alpha` and `rank` are one value for all layers, or a list that the layers take in turn.
    """
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Side]] = {}
    count = 0
    for part, pattern in (("unet", unet), ("text_encoder", text), ("text_encoder_2", text)):
        model = getattr(pipeline, part, None)
        if model is None or pattern is None:
            continue
        for name, layer in model.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not re.search(pattern, name):
                continue
            ranks, alphas = (value if isinstance(value, list) else [value] for value in (rank, alpha))
            size, shape = ranks[count % len(ranks)], layer.weight.shape
            found.setdefault(part, {})[name] = Side(
                torch.randn(size, *shape[1:], generator=draw) * 0.2,
                torch.randn(shape[0], size, *[1] * (len(shape) - 2), generator=draw) * 0.2,
                alphas[count % len(alphas)],
            )
            count += 1
    return found


def _published(part: str, name: str) -> str:
    """Return the name in files, which have a level that transformers 5 removed from one text encoder."""
    is_bare = part != "unet" and name.startswith("encoder.")
    return f"text_model.{name}" if is_bare else name


def peft(updates: Sides) -> State:
    """Return the format of PEFT and today's diffusers. It has no alpha, so alpha must be the rank."""
    state = {}
    for part, layers in updates.items():
        for name, side in layers.items():
            key = f"{part}.{_published(part, name)}"
            state |= {f"{key}.lora_A.weight": side.down, f"{key}.lora_B.weight": side.up}
    return state


def diffusers(updates: Sides) -> State:
    """Return the format of diffusers' own training scripts."""
    state = {}
    for part, layers in updates.items():
        middle = "lora" if part == "unet" else "lora_linear_layer"
        for name, side in layers.items():
            key = f"{part}.{_published(part, name)}.{middle}"
            state |= {f"{key}.down.weight": side.down, f"{key}.up.weight": side.up}
    return state


def diffusers_2023(updates: Sides) -> State:
    """Return the first format of diffusers, for attention only."""
    state = {}
    for part, layers in updates.items():
        for name, side in layers.items():
            layer = _published(part, name)
            layer = re.sub(r"\.(attn\d)\.to_(\w+)(\.0)?$", r".\1.processor.to_\2", layer)
            layer = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", layer)
            joint = "lora_linear_layer" if "mlp" in layer else ""
            key = f"{part}.{layer}" + (f".{joint}" if joint else "_lora")
            state |= {f"{key}.down.weight": side.down, f"{key}.up.weight": side.up}
    return state


def kohya(
    updates: Sides, *, original: Callable[[str], str] | None = None, text_prefix: str = "lora_te_"
) -> State:
    """Return the format of kohya-ss; `original` has the UNet's layer names in the program that it trains."""
    state: State = {}
    prefixes = {"unet": "lora_unet_", "text_encoder": text_prefix, "text_encoder_2": "lora_te2_"}
    for part, layers in updates.items():
        for name, side in layers.items():
            spelled = original(name) if original and part == "unet" else _published(part, name)
            key = prefixes[part] + spelled.replace(".", "_")
            state[f"{key}.lora_down.weight"] = side.down
            state[f"{key}.lora_up.weight"] = side.up
            state[f"{key}.alpha"] = torch.tensor(side.alpha)
    return state


def kohya_xl(updates: Sides, **options: Any) -> State:
    return kohya(updates, text_prefix="lora_te1_", **options)


def merged(model: nn.Module, layers: Mapping[str, Side], weight: float = 1.0) -> State:
    """Return a model's weights with its updates added, computed step by step."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, side in layers.items():
        product = side.up.flatten(1) @ side.down.flatten(1)
        factor = weight * side.alpha / len(side.down)
        state[f"{name}.weight"] += factor * product.reshape(state[f"{name}.weight"].shape)
    return state
