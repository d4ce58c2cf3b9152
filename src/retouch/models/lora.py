"""LoRA: low-rank updates of the layers of a model, added and removed from outside.

A layer with updates keeps its object and its weights: only its class changes, to one that adds the updates to
the layer's output. The updates are not in the state dict, so a model is saved and loaded without them. This
works for transformers' models too, because their layers are torch's.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.lora import Update
from retouch.models.replacement import with_replaced

Model = TypeVar("Model", bound=nn.Module)


class _Adapted:
    """The attributes that a layer gets with its updates."""

    weight: Tensor
    updates: dict[str, Update]  # by adapter, in use or not, in main memory
    weights: dict[str, float]  # of the adapters in use
    fused: list[str]
    unfused_weight: Tensor | None
    is_enabled: bool
    # The updates in use side by side, as one of the sum of their ranks: the only ones on the accelerator.
    lora_down: Tensor | None
    lora_up: Tensor | None

    def arrange(self) -> None:
        """Put the updates in use side by side."""
        used = [name for name in self.weights if name in self.updates and name not in self.fused]
        self.lora_down = self.lora_up = None
        if not used or not self.is_enabled:
            return
        updates = [self.updates[name] for name in used]
        scales = [self.updates[name].scale * self.weights[name] for name in used]
        down = torch.cat([update.down.float() for update in updates])
        up = torch.cat(
            [update.up.float() * scale for update, scale in zip(updates, scales, strict=True)], dim=1
        )
        spatial = [1] * (self.weight.ndim - 2)
        self.lora_down = down.reshape(-1, *self.weight.shape[1:]).to(self.weight)
        self.lora_up = up.reshape(*up.shape[:2], *spatial).to(self.weight)

    @torch.no_grad()
    def fuse(self, names: Collection[str], scale: float) -> None:
        """Add these updates to the weights. The former weights are kept for `unfuse`."""
        used = [name for name in names if name in self.updates and name not in self.fused]
        if not used:
            return
        total = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        for name in used:
            update, factor = self.updates[name], scale * self.weights.get(name, 1.0)
            up, down = (side.to(total).flatten(1) for side in (update.up, update.down))
            total = total + (update.scale * factor * (up @ down)).reshape(total.shape)
        if self.unfused_weight is None:
            self.unfused_weight = self.weight.data.to("cpu")
        self.weight.data = total.to(self.weight.dtype)
        self.fused = [*self.fused, *used]
        self.arrange()

    def unfuse(self) -> None:
        """Restore the former weights, bit for bit."""
        if self.unfused_weight is not None:
            self.weight.data = self.unfused_weight.to(self.weight)
        self.unfused_weight, self.fused = None, []
        self.arrange()


class LoRALinear(_Adapted, nn.Linear):
    """A linear layer and its updates."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = super().forward(x)
        if self.lora_down is None or self.lora_up is None:
            return y
        return y + scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


class LoRAConv2d(_Adapted, nn.Conv2d):
    """A convolution and its updates: a similar convolution to few channels, then a 1x1 convolution."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = super().forward(x)
        if self.lora_down is None or self.lora_up is None:
            return y
        return y + scale * F.conv2d(self._conv_forward(x, self.lora_down, None), self.lora_up)


# Class of a layer without updates -> class with updates.
_ADAPTED: dict[type[nn.Module], Any] = {}
_PLAIN: dict[type[nn.Module], Any] = {}


def register(plain: type[nn.Module], adapted: type[nn.Module]) -> None:
    """Let layers of exactly the class `plain` get updates, by a change to the class `adapted`."""
    _ADAPTED[plain], _PLAIN[adapted] = adapted, plain


register(nn.Linear, LoRALinear)
register(nn.Conv2d, LoRAConv2d)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the layers that can have updates, with the shapes of their weights."""
    known = {*_ADAPTED, *_PLAIN}
    return {
        name: tuple(layer.weight.shape)
        for name, layer in model.named_modules()
        if type(layer) in known
        and getattr(layer, "groups", 1) == 1
        and isinstance(layer.weight, nn.Parameter)  # an IP-Adapter's layers are not the model's own
    }


def attach(model: nn.Module, adapter: str, updates: Mapping[str, Update]) -> None:
    """Give layers their updates, under the name of a new adapter. `use` puts it to use."""
    for name, update in updates.items():
        layer: Any = model.get_submodule(name)
        if type(layer) in _ADAPTED:
            layer.updates, layer.weights, layer.fused = {}, {}, []
            layer.unfused_weight, layer.is_enabled = None, True
            for part in ("lora_down", "lora_up"):
                layer.register_buffer(part, None, persistent=False)
            layer.__class__ = _ADAPTED[type(layer)]
        layer.updates[adapter] = update
    _remember(model, [*adapters(model), adapter])


def detach(model: nn.Module, names: Collection[str] | None = None) -> None:
    """Remove adapters, or all with None. Layers without any become plain again; fused updates stay."""
    gone = set(adapters(model) if names is None else names)
    for layer in adapted(model):
        layer.updates = {name: layer.updates[name] for name in layer.updates if name not in gone}
        if layer.updates:
            layer.arrange()
            continue
        for part in ("updates", "weights", "fused", "unfused_weight", "is_enabled", "lora_down", "lora_up"):
            delattr(layer, part)
        layer.__class__ = _PLAIN[type(layer)]
    _remember(model, [name for name in adapters(model) if name not in gone])


def _remember(model: nn.Module, names: list[str]) -> None:
    """Store the order of loading. Layers do not know it: each has only some of the adapters."""
    model.__dict__["_lora_adapters"] = names
    if not names:
        del model.__dict__["_lora_adapters"]


def adapters(model: nn.Module) -> list[str]:
    """Return the names of a model's adapters, in the order of loading."""
    return list(model.__dict__.get("_lora_adapters", []))


def adapted(model: nn.Module) -> list[Any]:
    """Return the layers that have updates."""
    return [layer for layer in model.modules() if isinstance(layer, _Adapted)]


def active(model: nn.Module) -> list[str]:
    """Return the names of the adapters in use, which are the same in all layers."""
    there, layers = adapters(model), adapted(model)
    return [name for name in layers[0].weights if name in there] if layers else []


def fused(model: nn.Module) -> list[str]:
    """Return the names of the adapters that are fused into the weights."""
    there = {name for layer in adapted(model) for name in layer.fused}
    return [name for name in adapters(model) if name in there]


def use(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Use exactly these adapters, each with its weight."""
    for layer in adapted(model):
        layer.weights = dict(weights)
        layer.arrange()


def enable(model: nn.Module, is_enabled: bool) -> None:
    """Enable the adapters in use, or disable all of them until they are enabled again."""
    for layer in adapted(model):
        layer.is_enabled = is_enabled
        layer.arrange()


class Rescaled(nn.Module):
    """A layer whose updates are multiplied by `scale`; everything else is the layer's own."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        # Adapters may be removed, and with them the layer's updates, while a copy of the model is in use.
        has_updates = isinstance(self.layer, _Adapted | Rescaled)
        return self.layer(x, scale * self.scale) if has_updates else self.layer(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def rescaled(model: Model, scale: float | None) -> Model:
    """Return a copy of a model whose adapters count `scale` times as much. The model itself does not change.

    The copy shares all layers, parameters and buffers, and has the hooks that the model has now. If there is
    nothing to rescale, it is the model itself. The copy of a compiled model is not compiled.
    """
    if scale is None or scale == 1 or not adapted(model):
        return model
    plain: Any = getattr(model, "_orig_mod", model)
    with _hooks_lock():
        return with_replaced(
            plain, lambda layer: Rescaled(layer, scale) if isinstance(layer, _Adapted) else None
        )


def _hooks_lock() -> AbstractContextManager[Any]:
    """Return the lock under which transformers installs its hooks on a model, if this version has one.

    It installs them in the first call that asks for hidden states, and marks the model. A copy that is made
    meanwhile in another thread would have some hooks but no mark, and get those hooks a second time.
    """
    capturing: Any = sys.modules.get("transformers.utils.output_capturing")
    return getattr(capturing, "_hook_installation_lock", nullcontext())
