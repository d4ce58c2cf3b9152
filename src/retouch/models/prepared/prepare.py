"""A model's layers become their prepared twins, and plain again.

The model stays what it is: the same object, names, parameters and state dict, to the bit. Only how its layers
compute changes, for calls without gradients on a CPU. Weights are put in order by the first such call.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from retouch.models import attention, layers
from retouch.models.native_attention import attention as native_attention
from retouch.models.prepared import large_maps, layers as prepared, onednn
from retouch.models.prepared.weights import KeepsWeight, is_inference

Model = TypeVar("Model", bound=nn.Module)

_TWINS: dict[type[nn.Module], type[nn.Module]] = {}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {}


def register(plain: type[nn.Module], twin: type[nn.Module]) -> None:
    """Let `twin` take the place of layers of exactly this class."""
    _TWINS[plain], _PLAIN[twin] = twin, plain


register(nn.Linear, prepared.Linear)
register(nn.Conv2d, prepared.Conv2d)
register(nn.GroupNorm, large_maps.GroupNorm)
register(layers.ResnetBlock2D, large_maps.ResnetBlock2D)
register(layers.Upsample2D, prepared.Upsample2D)
register(attention.GEGLU, prepared.GEGLU)
register(attention.FeedForward, prepared.FeedForward)


def prepare(model: Model) -> Model:
    """Make a model fast on this machine's CPU, where that is known how; the same model is returned."""
    if not onednn.is_available():
        return model
    for layer in model.modules():
        twin = _TWINS.get(type(layer))
        if twin is not None and _fits(layer):
            layer.__class__ = twin
        if isinstance(layer, attention.Attention):
            layer.kernel = _attention
    return model


def unprepare(model: Model) -> Model:
    """Make every layer plain again; the same model is returned."""
    for layer in model.modules():
        if isinstance(layer, KeepsWeight):
            layer.give_back()
            layer.__dict__.pop("_kept", None)
        layer.__class__ = _PLAIN.get(type(layer), type(layer))
        if isinstance(layer, attention.Attention):
            layer.__dict__.pop("kernel", None)
    return model


def is_prepared(model: nn.Module) -> bool:
    """Whether any layer of the model is a prepared one."""
    return any(type(layer) in _PLAIN for layer in model.modules())


def _fits(layer: Any) -> bool:
    if isinstance(layer, nn.Conv2d):
        is_simple = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return is_simple and layer.weight is not None
    return True


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    if attn_mask is None and is_inference(query):
        return native_attention(query, key, value)
    return attention.Attention.kernel(query, key, value, attn_mask=attn_mask)
