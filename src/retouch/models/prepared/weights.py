"""Weights that a layer keeps in a kernel's order instead of the plain one, and gives back when asked.

In memory they are there once. Whoever looks at `layer.weight`, `parameters()` or `state_dict()`, moves the
layer or converts it, gets the plain parameter with its exact values; the next call that can use the other
form makes it again. A parameter that somebody holds (an optimizer, say) stays the layer's: else what is done
to it would be lost.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from retouch.models.prepared import onednn


class Form(NamedTuple):
    """A way to keep a weight."""

    pack: Callable[[Any, Tensor], Any]  # the layer and its weight
    unpack: Callable[[Any], Tensor]


# One thread changes a form at a time. Another that computes with the old one has it in hand.
_changing = threading.RLock()


def is_inference(x: Tensor) -> bool:
    """Whether a call may use kernels that have no gradients, on a CPU and in the tensors' own dtype."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() > 0
        and onednn.computes(x.dtype)
        and not torch.is_autocast_enabled("cpu")
    )


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody listens to what goes into a layer or comes out of it: then it must be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


_SAMPLED = 16  # values of each parameter


def samples(model: nn.Module) -> list[Tensor]:
    """A few values of each parameter, to tell of a change. No layer gives its weight back for that."""
    found = []
    for layer in model.modules():
        with _changing:
            own = layer.__dict__["_parameters"]
            mine = layer.__dict__.get("_kept")
            found += [mine[4]] if mine else []
            found += [_sampled(value) for value in own.values() if value is not None]
    return found


def _sampled(value: Tensor) -> Tensor:
    few = value.detach().flatten()[:: max(1, value.numel() // _SAMPLED)][:_SAMPLED]
    return few.to(torch.float32, copy=True)  # a view would keep all of it in memory


class KeepsWeight:
    """Mixin of the prepared layers. Their class alone differs from that of plain ones."""

    def kept(self, form: Form, x: Tensor) -> Any:
        """The weight in this form for a call with `x`; None where the call must use the plain one."""
        if not is_inference(x):
            return None
        mine = self.__dict__.get("_kept")
        if mine is None or mine[0] is not form:
            mine = self._keep(form)
        return None if mine is None or mine[2] != x.dtype else mine[1]

    def usual_form(self) -> Form | None:
        """The form that calls use where the layer works by itself."""
        raise NotImplementedError

    def pack(self) -> None:
        """Take the usual form now, unless the weight has one."""
        form = self.usual_form()
        if form is not None and self.__dict__.get("_kept") is None:
            self._keep(form)

    def _keep(self, form: Form) -> Any:
        with _changing, torch.inference_mode(False), torch.no_grad():
            mine = self.__dict__.get("_kept")
            if mine is not None and mine[0] is form:
                return mine
            weight = self._lent()
            if weight is None:
                return None
            data, needs_grad = weight
            self.__dict__["_kept"] = form, form.pack(self, data), data.dtype, needs_grad, _sampled(data)
            return self.__dict__["_kept"]

    def _lent(self) -> tuple[Tensor, bool] | None:
        """The weight's data, once the parameter is gone; None if it must stay."""
        own: Any = self._parameters  # type: ignore[attr-defined]  # gives back another form
        weight = own["weight"]
        if type(weight) is not nn.Parameter or weight.grad is not None:
            return None
        if weight.device.type != "cpu" or not onednn.computes(weight.dtype):
            return None
        data, needs_grad, seen = weight.detach(), weight.requires_grad, weakref.ref(weight)
        # A new mapping, since another thread may be reading the old one: then it holds the parameter.
        self.__dict__["_parameters"] = {**own, "weight": None}
        del own, weight
        held = seen()
        if held is not None:
            self.__dict__["_parameters"] = {**self.__dict__["_parameters"], "weight": held}
            return None
        return data, needs_grad

    def give_back(self) -> None:
        """Have the plain parameter again."""
        if self.__dict__.get("_kept") is None:
            return
        with _changing, torch.inference_mode(False), torch.no_grad():
            mine = self.__dict__.get("_kept")
            if mine is not None:
                form, packed, _, needs_grad, _ = mine
                weight = nn.Parameter(form.unpack(packed), requires_grad=needs_grad)
                self.__dict__["_parameters"] = {**self.__dict__["_parameters"], "weight": weight}
                self.__dict__["_kept"] = None

    if not TYPE_CHECKING:
        # torch looks for parameters here, whether it lists, saves, loads, moves or converts them.
        @property
        def _parameters(self) -> dict[str, Any]:
            with _changing:
                self.give_back()
                return self.__dict__["_parameters"]

        @property
        def weight(self) -> Any:
            """The plain parameter."""
            return self._parameters["weight"]

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.give_back()  # packed tensors can be neither copied nor pickled
        return super().__reduce_ex__(protocol)
