"""A UNet's calls on a GPU as recorded graphs: the same kernels in the same order, and no Python between.

A call of a new kind, which is what its inputs are and their shapes, computes as any other. The second one of
that kind is recorded, and from then on calls copy their inputs to where the recording reads, and play it. It
reads the weights where they were, so a change of values shows, and other weights ask for other recordings.
What a recording would not notice is computed layer by layer: adapters, hooks, gradients, autocast.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from retouch.models import lora
from retouch.models.ip_adapter import ImagePromptAttention
from retouch.models.prepared.prepare import is_chosen
from retouch.models.prepared.weights import has_hooks
from retouch.models.unet import UNet2DConditionModel

logger = logging.getLogger("retouch")

KINDS = 6  # of calls to one model that are known at a time: with and without guidance, deep features reused
SPARE = 4  # a recording keeps its memory, so one part in so many of the GPU's must be free beside it
_OTHERWISE = (lora.LoRALinear, lora.LoRAConv2d, ImagePromptAttention)  # heed numbers that are no tensors


class Recorder(Protocol):
    """What records for a kind of device."""

    def turn(self) -> AbstractContextManager[None]:
        """Around whatever touches a recording, for one thread at a time: after what others did with it."""

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What plays a call again, and where its result is then."""


class CudaRecorder:
    """CUDA's graphs. Those of one recorder share their memory, which is why no two may play at a time."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._device, self._stream, self._done = device, torch.cuda.Stream(), torch.cuda.Event()
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            with torch.cuda.stream(stream):  # a recording that fails may leave another one
                yield
            self._done.record(stream)

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph, mode = torch.cuda.CUDAGraph(), "thread_local"  # other threads may go on meanwhile
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            call()  # libraries set themselves up in a thread's first call, which cannot be recorded
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            result = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        free, total = torch.cuda.mem_get_info()
        if free * SPARE < total:
            raise torch.OutOfMemoryError(f"It leaves {free / 1e9:.1f} GB of the GPU's memory.")
        return graph.replay, result


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}


class Recording(NamedTuple):
    """One kind of call."""

    inputs: list[Tensor]
    play: Callable[[], None]
    result: Any


_recording = threading.Lock()  # a process can record one graph at a time


class Recordings:
    """Those of one model."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_futile = device, False
        self.kinds: OrderedDict[str, Recording | None] = OrderedDict()  # None: seen once
        self._recorder, self._lock = RECORDERS[device.type](device), threading.Lock()
        self._weights: list[Any] | None = None

    def forget(self) -> None:
        """Give back the memory of all."""
        with self._lock, self._recorder.turn():
            self.kinds.clear()

    def result(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """What the model returns; None if it has to be called itself."""
        weights = None if self.is_futile else _weights(model)
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
            while len(self.kinds) > KINDS:
                self.kinds.popitem(last=False)
            if is_new:
                return None
            if recording is None:
                recording = self._recorded(model, inputs)
                if recording is None:
                    return None
                self.kinds[kind] = recording
            tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
            for place, tensor in zip(recording.inputs, tensors, strict=True):
                place.copy_(tensor)
            recording.play()
            return _mapped(recording.result, Tensor.clone)  # the next call writes over it

    def _recorded(self, model: nn.Module, inputs: Mapping[str, Any]) -> Recording | None:
        places = _mapped(inputs, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
        try:
            with _recording:
                play, result = self._recorder.record(lambda: model(**places))
        except RuntimeError as error:
            self.is_futile = True
            self.kinds.clear()
            logger.warning("The UNet's steps are computed without recording them: %s", error)
            return None
        return Recording([leaf for leaf in _leaves(places) if isinstance(leaf, Tensor)], play, result)


_recordings: weakref.WeakKeyDictionary[nn.Module, Recordings] = weakref.WeakKeyDictionary()
_finding = threading.Lock()


@dataclass(frozen=True)
class Recorded:
    """A UNet, called as the UNet is."""

    model: UNet2DConditionModel

    def __call__(self, sample: Tensor, timestep: Any, text: Any = None, **inputs: Any) -> Any:
        model, kind = self.model, sample.device.type
        inputs = {"sample": sample, "encoder_hidden_states": text, **inputs}
        inputs["timestep"] = torch.as_tensor(timestep, device=sample.device)
        if torch.is_grad_enabled() or torch.is_autocast_enabled(kind) or kind not in RECORDERS:
            return model(**inputs)
        with _finding:
            mine = _recordings.get(model)
            if mine is None or mine.device != sample.device:
                mine = _recordings[model] = Recordings(sample.device)
        with torch.inference_mode(False), torch.no_grad():  # what is kept serves any later call
            result = mine.result(model, inputs)
        return model(**inputs) if result is None else result


def recorded(model: Any) -> Any:
    """What to call in a model's place where recordings gain: that model itself, or for it."""
    is_ours = isinstance(model, UNet2DConditionModel) and is_chosen(model)
    return Recorded(model) if is_ours and model.device.type in RECORDERS else model


def forget_recordings() -> None:
    """Give back what recordings hold, of all models. They are made again when they are missed."""
    with _finding:
        known = list(_recordings.values())
    for each in known:
        each.forget()


def _weights(model: nn.Module) -> list[Any] | None:
    """What a recording takes for granted: layers, and where their weights are. None: there must be none."""
    found: list[Any] = []
    rest = [model]
    while rest:
        layer = rest.pop()
        own = layer.__dict__
        is_changed = "forward" in own or own.get("_compiled_call_impl") is not None
        if is_changed or has_hooks(layer) or isinstance(layer, _OTHERWISE):
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
