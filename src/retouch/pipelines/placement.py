"""The place of a pipeline's models: always on one device, or moved to the accelerator for each use.

A strategy's `using(name)` is a context that yields the module where it can run. Leaving the context frees the
accelerator's memory, also after a failure, and removes all hooks from the module.
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
    """A strategy that puts a component where it runs, while a `with` block needs it."""

    device: torch.device

    def using(self, name: str) -> AbstractContextManager[Any]:
        """Return a context manager that yields the component called `name`."""

    def shared_by(self, owner: Any) -> Placement:
        """Return the strategy for another pipeline with the same parts, whose uses are counted together."""


class Resident:
    """A strategy that keeps everything on one device."""

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
    """The strategy of a larger pipeline, for a part of it that names its components without the prefix."""

    def __init__(self, whole: Placement, prefix: str) -> None:
        self.whole, self.prefix = whole, prefix
        self.device = whole.device

    def shared_by(self, owner: Any) -> Self:
        return self

    def using(self, name: str) -> AbstractContextManager[Any]:
        return self.whole.using(self.prefix + name)


class _Offload(Resident):
    """Base of the strategies that keep a module on the accelerator while any thread uses it."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        super().__init__(owner, device)
        self._lock = threading.RLock()
        self._users: Counter[nn.Module] = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.owner, memo), self.device)  # nothing uses the copied parts yet

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
    """A strategy with one whole model at a time on the accelerator, and the others in main memory."""

    def _borrow(self, module: nn.Module) -> None:
        module.to(self.device)

    def _give_back(self, module: nn.Module) -> None:
        module.to("cpu")


class SequentialOffload(_Offload):
    """A strategy with one layer at a time on the accelerator: the least memory, and slow."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        super().__init__(owner, device)
        self._hooks: dict[nn.Module, list[Any]] = {}
        self._homes: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._turn = threading.RLock()  # a layer has one place at a time, so only one thread computes

    def _borrow(self, module: nn.Module) -> None:
        # Their layer is an argument, so that these functions also work for a copy of a hooked module.
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
