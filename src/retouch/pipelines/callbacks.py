"""The familiar `callback_on_step_end` over the loop's progress: what it may see, and what it may replace."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from retouch.sampling.denoise import Progress
from retouch.sampling.predict import Predictor
from retouch.sampling.region import Region

if TYPE_CHECKING:
    from retouch.pipelines.run import Run


class Listener:
    """Calls the request's callback after a step and puts what it returns back into the run.

    The tensors look as the reference's do: with guidance, negative rows stand before positive ones.
    """

    def __init__(self, run: Run, predict: Predictor, region: Region | None) -> None:
        self.run, self.predict, self.region = run, predict, region
        self.callback = run.request.callback_on_step_end
        self._ignored: set[str] = set()  # what the caller was told of

    def hear(self, index: int, progress: Progress) -> None:
        """Tell the callback of a step."""
        if self.callback is None:
            return
        tensors = {name: self._show(name, progress) for name in self.run.request.listened}
        answer = self.callback(self.run, index, progress.step.timestep, dict(tensors)) or {}
        self._tell_of_unknown(answer)
        for name, value in answer.items():
            # These rows are a part of another tensor, whose replacement they must not undo.
            if name not in self.run.listenable_negatives or value is not tensors.get(name):
                self._replace(name, value, progress)

    def _tell_of_unknown(self, names: Iterable[str]) -> None:
        known = self.run.tensor_names
        new = [name for name in names if name not in known and name not in self._ignored]
        if new:
            self._ignored.update(new)
            warnings.warn(
                f"The callback returned {', '.join(map(str, new))}, which has no effect. What it may "
                f"replace is {', '.join(known)}. Return one of these, or leave it out.",
                stacklevel=2,
            )

    def _show(self, name: str, progress: Progress) -> Any:
        predict, run = self.predict, self.run
        if name == "latents":
            return progress.latents
        if predict.control is not None and name == run.control_argument:
            shown = predict.control.shown(predict.guidance)
            return shown if len(shown) > 1 else shown[0]
        if name in run.listenable:
            return _at(predict.inputs, run.listenable[name])
        if name in run.listenable_negatives:
            both = _at(predict.inputs, run.listenable_negatives[name])
            return both[: run.rows] if len(both) > run.rows else None
        if predict.channels is not None:
            return predict.guidance.repeat(predict.channels[:, run.channel_names[name]])
        if name == run.mask_name and self.region is not None:
            return predict.guidance.repeat(run.shown_mask(self.region.repaint))
        return None

    def _replace(self, name: str, value: Tensor, progress: Progress) -> None:
        predict, run = self.predict, self.run
        if name == "latents":
            progress.latents = value
        elif predict.control is not None and name == run.control_argument:
            predict.control.show(value if isinstance(value, list | tuple) else [value])
        elif name in run.listenable:
            predict.inputs = _with(predict.inputs, run.listenable[name], value)
        elif name in run.listenable_negatives:
            path = run.listenable_negatives[name]
            both = _at(predict.inputs, path).clone()
            both[: len(both) - run.rows] = value
            predict.inputs = _with(predict.inputs, path, both)
        elif name in run.channel_names and value is not None:
            if predict.channels is not None:
                predict.channels = predict.channels.clone()
                predict.channels[:, run.channel_names[name]] = value[-run.rows :]
            if name == run.mask_name and self.region is not None:
                self.region.repaint = run.shown_mask(value[-run.rows :])


def _at(inputs: Mapping[str, Any], path: Sequence[str]) -> Any:
    for key in path:
        inputs = inputs[key]
    return inputs


def _with(inputs: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The inputs with one of them replaced; mappings inside may be shared, so they are not changed."""
    key, *rest = path
    return {**inputs, key: _with(inputs[key], rest, value) if rest else value}
