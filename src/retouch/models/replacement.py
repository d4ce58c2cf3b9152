"""Copies of models in which some layers are replaced and everything else is shared with the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar, cast

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_replaced(model: Model, replacement: Callable[[nn.Module], nn.Module | None]) -> Model:
    """Return a copy of a model with other layers in some places. The original does not change.

    `replacement` is called for each module. It returns the module to use in its place, which may be the same
    one, or None to look at the modules inside. Modules that contain others are copied, and get hook tables of
    their own; other modules, parameters and buffers are shared.
    """
    found: dict[nn.Module, nn.Module] = {}

    def replaced(module: nn.Module) -> nn.Module:
        if module not in found:
            chosen = replacement(module)
            if chosen is None:
                chosen = _copied(module, replaced) if module._modules else module
            found[module] = chosen
        return found[module]

    return cast(Model, replaced(model))


def _copied(module: nn.Module, replaced: Callable[[nn.Module], nn.Module]) -> nn.Module:
    twin = copy.copy(module)
    for name, value in module.__dict__.items():
        if "_hooks" in name and isinstance(value, dict):  # later hooks are for one of the two
            twin.__dict__[name] = copy.copy(value)
    twin.__dict__["_modules"] = {
        name: None if part is None else replaced(part) for name, part in module._modules.items()
    }
    return twin
