"""Replace a model's layers by optimized ones, and restore the plain ones.

A layer is replaced by a change of its class, so the model keeps its object, names, parameters and state dict.
Optimized layers compute calls without gradients on a CPU; all other calls take the plain layer's way. On a
GPU the layers are torch's own; with the environment variable RETOUCH_CUDA_GRAPHS=1 a UNet's calls are
recorded (cuda/graphs.py).
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retouch.kernels.cpu import large_maps, layers as optimized, onednn
from retouch.kernels.cpu.attention import attention as native_attention
from retouch.kernels.cpu.packed_weights import PackedWeight, is_inference, pack_ahead
from retouch.kernels.cuda import graphs
from retouch.models import attention, autoencoder, layers, lora, unet

Model = TypeVar("Model", bound=nn.Module)

# Plain class -> optimized class. A layer is replaced only if it is of exactly the plain class.
_OPTIMIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: optimized.Linear,
    nn.Conv2d: optimized.Conv2d,
    nn.GroupNorm: large_maps.GroupNorm,
    layers.ResnetBlock2D: large_maps.ResnetBlock2D,
    layers.Upsample2D: large_maps.Upsample2D,
    autoencoder.Decoder: large_maps.Decoder,
    attention.GEGLU: optimized.GEGLU,
    attention.FeedForward: optimized.FeedForward,
    lora.LoRALinear: optimized.LoRALinear,
    lora.LoRAConv2d: optimized.LoRAConv2d,
}
_PLAIN = {
    **{replacement: plain for plain, replacement in _OPTIMIZED.items()},
    graphs.UNet2DConditionModel: unet.UNet2DConditionModel,
}

GPUS = ["cuda"]


def optimize(model: Model) -> Model:
    """Optimize a model for the device that it is on, and return the same model.

    After a move to another kind of device or a change of dtype, optimize it again.
    """
    place = next((parameter.device.type for parameter in model.parameters()), "cpu")
    if place in GPUS:
        _optimize_for_gpu(model)
    else:
        _optimize_for_cpu(model)
    if not is_optimized(model):
        model.register_forward_pre_hook(pack_ahead, with_kwargs=True)
    return model


def _optimize_for_gpu(model: nn.Module) -> None:
    restore(model)
    if next(model.parameters()).dtype in (torch.float16, torch.bfloat16):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
    if os.environ.get("RETOUCH_CUDA_GRAPHS") == "1" and type(model) is unet.UNet2DConditionModel:
        model.__class__ = graphs.UNet2DConditionModel


def _optimize_for_cpu(model: nn.Module) -> None:
    if type(model) is graphs.UNet2DConditionModel:
        restore(model)
    if not onednn.is_available():
        return
    for layer in model.modules():
        replacement = _OPTIMIZED.get(type(layer))
        if replacement is not None and _can_be_optimized(layer):
            layer.__class__ = replacement
        if isinstance(layer, attention.Attention):
            layer.kernel = _attention


def restore(model: Model) -> Model:
    """Make every layer of a model plain again, and return the same model."""
    for layer in model.modules():
        if isinstance(layer, PackedWeight):
            layer.unpack()
            layer.__dict__.pop("_packed", None)
        layer.__class__ = _PLAIN.get(type(layer), type(layer))
        if isinstance(layer, attention.Attention):
            layer.__dict__.pop("kernel", None)
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is pack_ahead]:
            del layer._forward_pre_hooks[key], layer._forward_pre_hooks_with_kwargs[key]
    return model


def is_optimized(model: nn.Module) -> bool:
    """Return whether `optimize` was called for the model, also where this machine has no faster layers."""
    return pack_ahead in model._forward_pre_hooks.values()


def _can_be_optimized(layer: Any) -> bool:
    if isinstance(layer, nn.Conv2d):
        is_simple = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return is_simple and layer.weight is not None
    return True


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    if attn_mask is None and is_inference(query):
        return native_attention(query, key, value)
    return attention.Attention.kernel(query, key, value, attn_mask=attn_mask)
