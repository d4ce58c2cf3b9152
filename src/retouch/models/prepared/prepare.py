"""A model's layers become their prepared twins, and plain again.

The model stays what it is: the same object, names, parameters and state dict, to the bit. Only how its layers
compute changes, for calls without gradients on a CPU. Weights are put in order by the first such call. On a
GPU the layers are torch's own, and graphs.py records what a UNet does with them.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retouch.models import attention, autoencoder, layers
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
register(layers.Upsample2D, large_maps.Upsample2D)
register(autoencoder.Decoder, large_maps.Decoder)
register(attention.GEGLU, prepared.GEGLU)
register(attention.FeedForward, prepared.FeedForward)


GPUS = ["cuda"]
_chosen: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def prepare(model: Model) -> Model:
    """Make a model fast where it is, if that is known how; the same model is returned.

    After it went to another kind of device or another dtype, it has to be prepared again.
    """
    first = next(model.parameters(), None)
    if first is not None and first.device.type in GPUS:
        unprepare(model)
        if first.dtype in (torch.float16, torch.bfloat16):  # in which convolutions want maps by pixels
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        _prepare_for_cpu(model)
    _chosen.add(model)
    return model


def _prepare_for_cpu(model: nn.Module) -> None:
    if not onednn.is_available():
        return
    for layer in model.modules():
        twin = _TWINS.get(type(layer))
        if twin is not None and _fits(layer):
            layer.__class__ = twin
        if isinstance(layer, attention.Attention):
            layer.kernel = _attention


def unprepare(model: Model) -> Model:
    """Make every layer plain again; the same model is returned."""
    _chosen.discard(model)
    for layer in model.modules():
        if isinstance(layer, KeepsWeight):
            layer.give_back()
            layer.__dict__.pop("_kept", None)
        layer.__class__ = _PLAIN.get(type(layer), type(layer))
        if isinstance(layer, attention.Attention):
            layer.__dict__.pop("kernel", None)
    return model


def pack(model: nn.Module) -> None:
    """Put a prepared model's weights in order ahead of its first call.

    Packed in the midst of a call, between its results, they would leave holes in memory that stay: with
    SDXL at its size those took 2 GB.
    """
    for layer in model.modules():  # those that pack their own layers' weights come before these
        packed: Any = getattr(type(layer), "pack", None)
        if packed is not None:
            packed(layer)


def is_chosen(model: nn.Module) -> bool:
    """Whether the model was to be made fast, whatever came of it on this machine."""
    return model in _chosen


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
