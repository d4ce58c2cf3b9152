"""Where a pipeline's models live between and during use: resident, or moved to the accelerator as needed.

A strategy answers `using(name)` with a context that yields the module ready to run; leaving it frees
what was borrowed, also when the call failed. Nothing stays hooked into a module afterwards.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from typing_extensions import Self


class Placement(Protocol):
    """Puts a component where it runs, for as long as a `with` block needs it."""

    device: torch.device

    def using(self, name: str) -> AbstractContextManager[Any]:
        """A context manager that yields the component called `name`."""

    def shared_by(self, owner: Any) -> Placement:
        """The same strategy for another pipeline with the same parts: who uses one is counted together."""


class Resident:
    """Everything stays on one device."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        self.owner, self.device = owner, device

    def shared_by(self, owner: Any) -> Self:
        twin = copy.copy(self)
        twin.owner = owner
        return twin

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        yield getattr(self.owner, name)


class Prefixed:
    """The strategy of a larger pipeline, for a part of it that calls the components without their prefix."""

    def __init__(self, whole: Placement, prefix: str) -> None:
        self.whole, self.prefix = whole, prefix
        self.device = whole.device

    def shared_by(self, owner: Any) -> Self:
        return self

    def using(self, name: str) -> AbstractContextManager[Any]:
        return self.whole.using(self.prefix + name)


class _Offload(Resident):
    """Base of the strategies that borrow a module while anyone, in any thread, uses it."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        super().__init__(owner, device)
        self._lock = threading.RLock()
        self._users: Counter[nn.Module] = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.owner, memo), self.device)  # its parts are used by nobody yet

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        module = getattr(self.owner, name)
        try:
            with self._lock:
                self._users[module] += 1
                if self._users[module] == 1:
                    self._borrow(module)
            yield module
        finally:
            with self._lock:
                self._users[module] -= 1
                if not self._users[module]:
                    del self._users[module]
                    self._give_back(module)

    def _borrow(self, module: nn.Module) -> None:
        raise NotImplementedError

    def _give_back(self, module: nn.Module) -> None:
        raise NotImplementedError


class ModelOffload(_Offload):
    """One whole model at a time on the accelerator, the others in main memory."""

    def _borrow(self, module: nn.Module) -> None:
        module.to(self.device)

    def _give_back(self, module: nn.Module) -> None:
        module.to("cpu")


class SequentialOffload(_Offload):
    """One layer at a time on the accelerator: the least memory, and slow."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        super().__init__(owner, device)
        self._hooks: dict[nn.Module, list[Any]] = {}
        self._homes: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._turn = threading.RLock()  # a layer cannot be in two places, so one thread computes at a time

    def _borrow(self, module: nn.Module) -> None:
        # Functions that know their layer by argument alone: a copy of a hooked module works with them, too.
        def fetch(layer: nn.Module, _: Any) -> None:
            self._fetch(layer)

        def release(layer: nn.Module, *_: Any) -> None:
            self._release(layer)

        self._hooks[module] = hooks = []
        for layer in module.modules():
            if _own_tensors(layer):
                hooks.append(layer.register_forward_pre_hook(fetch))
                hooks.append(layer.register_forward_hook(release, always_call=True))

    def _give_back(self, module: nn.Module) -> None:
        for hook in self._hooks.pop(module):
            hook.remove()

    def _fetch(self, layer: nn.Module) -> None:
        self._turn.acquire()
        self._homes[layer] = [(tensor, tensor.data) for tensor in _own_tensors(layer)]
        for tensor, home in self._homes[layer]:
            tensor.data = home.to(self.device)

    def _release(self, layer: nn.Module) -> None:
        if layer not in self._homes:
            return
        for tensor, home in self._homes.pop(layer):
            tensor.data = home
        self._turn.release()


def _own_tensors(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
