"""Weights that a layer stores in a kernel's order ("packed") in place of the plain parameter.

Each weight is in memory once. `layer.weight`, `parameters()`, `state_dict()`, a move or a conversion unpack
it first and see the plain parameter with its exact values; the next call that can use the packed weight packs
it again. A parameter that other code refers to, for example an optimizer, stays plain: changes to it would be
lost otherwise.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from retouch.kernels.cpu import onednn


class Packing(NamedTuple):
    """One way to pack a weight, and the inverse."""

    pack: Callable[[Any, Tensor], Any]  # takes the layer and its weight
    unpack: Callable[[Any], Tensor]


class Packed(NamedTuple):
    """A packed weight, and the facts about the parameter that it replaces."""

    packing: Packing
    weight: Any
    dtype: torch.dtype
    requires_grad: bool
    samples: Tensor


# Only one thread packs or unpacks at a time. A thread that computes holds a reference to the packed weight.
_lock = threading.RLock()


def is_inference(x: Tensor) -> bool:
    """Return whether a call with `x` may use kernels without gradients, on a CPU and in the dtype of `x`."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() > 0
        and onednn.computes(x.dtype)
        and not torch.is_autocast_enabled("cpu")
    )


def pack_ahead(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pack all weights of an optimized model before a call. Registered as a hook, this also marks the model.

    Weights that are packed in the middle of a call, between its results, leave holes in memory that stay.
    With SDXL in full size those took 2 GB.
    """
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if first is not None and is_inference(first):
        for layer in model.modules():  # a layer that packs the weights inside it comes before those
            pack: Any = getattr(type(layer), "pack", None)
            if pack is not None:
                pack(layer)


def has_hooks(layer: nn.Module) -> bool:
    """Return whether other code registered hooks on a layer: then the layer must be called itself."""
    return bool(layer._forward_hooks) or any(
        hook is not pack_ahead for hook in layer._forward_pre_hooks.values()
    )


_SAMPLE_SIZE = 16  # values of each parameter


def weight_samples(module: nn.Module) -> list[Tensor]:
    """Return a few values of each parameter, to recognise a change. No weight is unpacked for it."""
    found = []
    for layer in module.modules():
        with _lock:
            parameters = layer.__dict__["_parameters"]
            packed = layer.__dict__.get("_packed")
            found += [packed.samples] if packed else []
            found += [_sampled(value) for value in parameters.values() if value is not None]
    return found


def _sampled(value: Tensor) -> Tensor:
    few = value.detach().flatten()[:: max(1, value.numel() // _SAMPLE_SIZE)][:_SAMPLE_SIZE]
    return few.to(torch.float32, copy=True)  # a view would keep all of the parameter in memory


class PackedWeight:
    """Mixin of the optimized layers that pack their weight."""

    def packed_weight(self, packing: Packing, x: Tensor) -> Any:
        """Return the weight in this packing for a call with `x`; None if the call must use the plain one."""
        if not is_inference(x):
            return None
        packed = self.__dict__.get("_packed")
        if packed is None or packed.packing is not packing:
            packed = self.pack_as(packing)
        return None if packed is None or packed.dtype != x.dtype else packed.weight

    def default_packing(self) -> Packing | None:
        """Return the packing that the layer's own calls use."""
        raise NotImplementedError

    def pack(self) -> None:
        """Pack the weight for the layer's own calls, unless it is packed already in some way."""
        packing = self.default_packing()
        if packing is not None and self.__dict__.get("_packed") is None:
            self.pack_as(packing)

    def pack_as(self, packing: Packing) -> Packed | None:
        """Pack the weight in this way and return it; None if the parameter must stay plain."""
        with _lock, torch.inference_mode(False), torch.no_grad():
            packed: Packed | None = self.__dict__.get("_packed")
            if packed is not None and packed.packing is packing:
                return packed
            weight = self._release_weight()
            if weight is None:
                return None
            data, requires_grad = weight
            packed = Packed(packing, packing.pack(self, data), data.dtype, requires_grad, _sampled(data))
            self.__dict__["_packed"] = packed
            return packed

    def _release_weight(self) -> tuple[Tensor, bool] | None:
        """Remove the parameter and return its data and whether it is trained; None if it must stay."""
        own: Any = self._parameters  # type: ignore[attr-defined]  # unpacks a weight in another packing
        weight = own["weight"]
        if type(weight) is not nn.Parameter or weight.grad is not None:
            return None
        if weight.device.type != "cpu" or not onednn.computes(weight.dtype):
            return None
        data, requires_grad, reference = weight.detach(), weight.requires_grad, weakref.ref(weight)
        # A new mapping, because another thread may read the old one, which then refers to the parameter.
        self.__dict__["_parameters"] = {**own, "weight": None}
        del own, weight
        referred = reference()
        if referred is not None:
            self.__dict__["_parameters"] = {**self.__dict__["_parameters"], "weight": referred}
            return None
        return data, requires_grad

    def unpack(self) -> None:
        """Replace the packed weight by the plain parameter."""
        if self.__dict__.get("_packed") is None:
            return
        with _lock, torch.inference_mode(False), torch.no_grad():
            packed = self.__dict__.get("_packed")
            if packed is not None:
                data = packed.packing.unpack(packed.weight)
                weight = nn.Parameter(data, requires_grad=packed.requires_grad)
                self.__dict__["_parameters"] = {**self.__dict__["_parameters"], "weight": weight}
                self.__dict__["_packed"] = None

    if not TYPE_CHECKING:
        # torch looks for parameters here, whether it lists, saves, loads, moves or converts them.
        @property
        def _parameters(self) -> dict[str, Any]:
            with _lock:
                self.unpack()
                return self.__dict__["_parameters"]

        @property
        def weight(self) -> Any:
            """The plain parameter."""
            return self._parameters["weight"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.unpack()  # packed tensors can be neither copied nor pickled
        return super().__reduce_ex__(protocol)
