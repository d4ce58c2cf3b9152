"""Tells which layers of a model are optimized, and which of them hold a packed weight."""

from __future__ import annotations

from torch import nn

from retouch.kernels import optimization


def has_optimized_layers(model: nn.Module) -> bool:
    return any(type(layer) in optimization._PLAIN for layer in model.modules())


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if vars(layer).get("_packed") is not None]
