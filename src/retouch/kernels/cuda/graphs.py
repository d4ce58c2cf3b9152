"""A UNet whose calls on a GPU are recorded as CUDA graphs: the same kernels, without Python between them.

A call of a new kind (inputs, their shapes and dtypes) computes as usual. The second call of that kind is
recorded; from then on calls copy their inputs to where the recording reads them, and play it. A recording
reads the weights where they were, so changes in place count, and weights in another place are recorded again.
Calls that a recording could not follow (LoRA, IP-Adapters, hooks, gradients, autocast) compute as usual.

This has not run on a GPU yet, so the environment variable RETOUCH_CUDA_GRAPHS=1 has to ask for it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from retouch.kernels.cpu.packed_weights import has_hooks
from retouch.models import lora, unet
from retouch.models.ip_adapter import ImagePromptAttention

logger = logging.getLogger("retouch")

MAX_KINDS = 6  # kinds of calls that are kept for one model: with and without guidance, deep features reused
MIN_FREE = 0.25  # share of the GPU's memory that must be free beside the recordings, which keep theirs
_UNRECORDED = (lora.LoRALinear, lora.LoRAConv2d, ImagePromptAttention)  # they compute with plain numbers


class Recorder(Protocol):
    """Records calls on one kind of device."""

    def turn(self) -> AbstractContextManager[None]:
        """Return a context for all use of recordings, by one thread at a time."""

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Run and record a call; return a function that repeats it, and the result that it writes to."""


class CudaRecorder:
    """Records CUDA graphs. The graphs of one recorder share their memory, so only one may play at a time."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._device, self._stream, self._done = device, torch.cuda.Stream(), torch.cuda.Event()
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            with torch.cuda.stream(stream):  # a failed recording may leave another stream current
                yield
            self._done.record(stream)

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph, mode = torch.cuda.CUDAGraph(), "thread_local"  # other threads may use the GPU meanwhile
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            call()  # libraries set themselves up in a thread's first call, which cannot be recorded
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            result = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        free, total = torch.cuda.mem_get_info()
        if free < MIN_FREE * total:
            raise torch.OutOfMemoryError(f"It leaves {free / 1e9:.1f} GB of the GPU's memory.")
        return graph.replay, result


# Kind of device -> its recorder.
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}


class Recording(NamedTuple):
    """One recorded kind of call."""

    inputs: list[Tensor]
    play: Callable[[], None]
    result: Any


_recording = threading.Lock()  # a process can record one graph at a time


class Recordings:
    """The recordings of one model."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.has_failed = device, False
        self.kinds: OrderedDict[str, Recording | None] = OrderedDict()  # None: one call of this kind was made
        self._recorder, self._lock = RECORDERS[device.type](device), threading.Lock()
        self._weights: list[Any] | None = None

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        with self._lock, self._recorder.turn():
            self.kinds.clear()

    def result(self, model: nn.Module, call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """Return the result of a recorded call of the model; None if it has to be computed as usual."""
        weights = None if self.has_failed else _weights(model)
        given = _leaves(inputs)
        if weights is None or not all(_is_plain(leaf, self.device) for leaf in given):
            return None
        kind = repr(_mapped(inputs, _described))
        with self._lock, self._recorder.turn():
            if weights != self._weights:
                self.kinds.clear()
                self._weights = weights
            is_new = kind not in self.kinds
            recording = self.kinds.setdefault(kind, None)
            self.kinds.move_to_end(kind)
            while len(self.kinds) > MAX_KINDS:
                self.kinds.popitem(last=False)
            if is_new:
                return None
            if recording is None:
                recording = self._record(call, inputs)
                if recording is None:
                    return None
                self.kinds[kind] = recording
            tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
            for place, tensor in zip(recording.inputs, tensors, strict=True):
                place.copy_(tensor)
            recording.play()
            return _mapped(recording.result, Tensor.clone)  # the next call overwrites it

    def _record(self, call: Callable[..., Any], inputs: Mapping[str, Any]) -> Recording | None:
        places = _mapped(inputs, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
        try:
            with _recording:
                play, result = self._recorder.record(lambda: call(**places))
        except RuntimeError as error:
            self.has_failed = True
            self.kinds.clear()
            logger.warning("The UNet's calls are computed without recordings: %s", error)
            return None
        return Recording([leaf for leaf in _leaves(places) if isinstance(leaf, Tensor)], play, result)


_recordings: weakref.WeakKeyDictionary[nn.Module, Recordings] = weakref.WeakKeyDictionary()
_finding = threading.Lock()


class UNet2DConditionModel(unet.UNet2DConditionModel):
    """A UNet that records its calls."""

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Any = None, **inputs: Any) -> Any:
        call = super().forward
        kind = sample.device.type
        if (
            kind not in RECORDERS
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled(kind)
            or torch.compiler.is_compiling()
        ):
            return call(sample, timestep, encoder_hidden_states, **inputs)
        inputs = {"sample": sample, "encoder_hidden_states": encoder_hidden_states, **inputs}
        inputs["timestep"] = torch.as_tensor(timestep, device=sample.device)
        with _finding:
            mine = _recordings.get(self)
            if mine is None or mine.device != sample.device:
                mine = _recordings[self] = Recordings(sample.device)
        with torch.inference_mode(False), torch.no_grad():  # so that recorded tensors serve any later call
            result = mine.result(self, call, inputs)
        return call(**inputs) if result is None else result


def forget_recordings() -> None:
    """Drop the recordings of all models and their memory. Later calls are recorded again."""
    with _finding:
        known = list(_recordings.values())
    for each in known:
        each.forget()


def _weights(model: nn.Module) -> list[Any] | None:
    """Return what a recording depends on: the layers, and where their weights are. None: do not record."""
    found: list[Any] = []
    rest = [model]
    while rest:
        layer = rest.pop()
        own = layer.__dict__
        is_changed = "forward" in own or own.get("_compiled_call_impl") is not None
        if is_changed or has_hooks(layer) or isinstance(layer, _UNRECORDED):
            return None
        found.append(type(layer))
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            found += (None,) if tensor is None else (tensor.data_ptr(), tensor.dtype)
        rest += [part for part in own["_modules"].values() if part is not None]
    return found


def _is_plain(leaf: Any, device: torch.device) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.device == device
    return leaf is None or isinstance(leaf, bool | int | float | str)


def _described(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _leaves(values: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(values, found.append)
    return found


def _mapped(values: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(values, Mapping):
        return {name: _mapped(values[name], function) for name in sorted(values)}
    if isinstance(values, tuple | list):
        parts = [_mapped(part, function) for part in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    return function(values)
