"""A stand-in for CUDA graphs on a CPU: it records the operations of a call and repeats them.

Like a graph, it knows tensors by their memory and runs no Python: a changed number or a replaced weight has
no effect on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.done:
                again = func(*args, **kwargs)
                pairs = [(result, again)] if isinstance(result, Tensor) else zip(result, again, strict=True)
                for place, value in pairs:
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


class OpRecorder:
    """A recorder that counts its calls, and can be set to fail."""

    made: list[OpRecorder]
    error: BaseException | None = None

    def __init__(self, device: torch.device) -> None:
        self.recorded = self.played = self.inside = 0
        self.made.append(self)

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.inside += 1
        assert self.inside == 1, "two threads at a time"
        try:
            yield
        finally:
            self.inside -= 1

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        with _Tape() as tape:
            result = call()

        def play() -> None:
            self.played += 1
            tape.play()

        return play, result
