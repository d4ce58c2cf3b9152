"""Where a pipeline's models live between and during use: resident, or moved to the accelerator as needed.

A strategy answers `using(name)` with a context that yields the module ready to run; leaving it frees
what was borrowed, also when the call failed. Nothing stays hooked into a module afterwards.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn


class Placement(Protocol):
    """Puts a component where it runs, for as long as a `with` block needs it."""

    device: torch.device

    def using(self, name: str) -> Any:
        """A context manager that yields the component called `name`."""


class Resident:
    """Everything stays on one device."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        self.owner, self.device = owner, device

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        yield getattr(self.owner, name)


class ModelOffload:
    """One whole model at a time on the accelerator, the others in main memory."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        self.owner, self.device = owner, device
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        module = getattr(self.owner, name)
        with self._lock:
            self._users[name] += 1
            module.to(self.device)
        try:
            yield module
        finally:
            with self._lock:  # another thread may be using it still
                self._users[name] -= 1
                if not self._users[name]:
                    module.to("cpu")


class SequentialOffload:
    """One layer at a time on the accelerator: the least memory, and slow."""

    def __init__(self, owner: Any, device: torch.device) -> None:
        self.owner, self.device = owner, device
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        module = getattr(self.owner, name)
        hooks = []
        with self._locks[name]:  # a layer cannot be in two places
            try:
                for layer in module.modules():
                    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
                    if tensors:
                        hooks += self._borrow(layer, tensors)
                yield module
            finally:
                for hook in hooks:
                    hook.remove()

    def _borrow(self, layer: nn.Module, tensors: list[torch.Tensor]) -> list[Any]:
        homes = [tensor.data for tensor in tensors]

        def fetch(*_: Any) -> None:
            for tensor, home in zip(tensors, homes, strict=True):
                tensor.data = home.to(self.device)

        def release(*_: Any) -> None:
            for tensor, home in zip(tensors, homes, strict=True):
                tensor.data = home

        return [
            layer.register_forward_pre_hook(fetch),
            layer.register_forward_hook(release, always_call=True),
        ]
