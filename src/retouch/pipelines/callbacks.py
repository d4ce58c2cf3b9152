"""The familiar `callback_on_step_end` over the loop's progress: what it may see, and what it may replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def hear(self, index: int, progress: Progress) -> None:
        """Tell the callback of a step."""
        if self.callback is None:
            return
        tensors = {name: self._show(name, progress) for name in self.run.request.listened}
        answer = self.callback(self.run, index, progress.step.timestep, dict(tensors)) or {}
        for name, value in answer.items():
            # These rows are a part of prompt_embeds, whose replacement they must not undo.
            if name != "negative_prompt_embeds" or value is not tensors.get(name):
                self._replace(name, value, progress)

    def _show(self, name: str, progress: Progress) -> Any:
        predict, rows = self.predict, self.run.rows
        if name == "latents":
            return progress.latents
        if predict.control is not None and name == self.run.control_argument:
            shown = predict.control.shown(predict.guidance)
            return shown if len(shown) > 1 else shown[0]
        if name in self.run.listenable:
            return _at(predict.inputs, self.run.listenable[name])
        text = predict.inputs["encoder_hidden_states"]
        if name == "negative_prompt_embeds":
            return text[:rows] if len(text) > rows else None
        if predict.channels is not None:
            part = predict.channels[:, :1] if name == "mask" else predict.channels[:, 1:]
            return predict.guidance.repeat(part)
        if name == "mask" and self.region is not None:
            return predict.guidance.repeat(self.region.repaint)
        return None

    def _replace(self, name: str, value: Tensor, progress: Progress) -> None:
        predict, rows = self.predict, self.run.rows
        if name == "latents":
            progress.latents = value
        elif predict.control is not None and name == self.run.control_argument:
            predict.control.show(value if isinstance(value, list | tuple) else [value])
        elif name in self.run.listenable:
            predict.inputs = _with(predict.inputs, self.run.listenable[name], value)
        elif name == "negative_prompt_embeds":
            text = predict.inputs["encoder_hidden_states"].clone()
            text[: len(text) - rows] = value
            predict.inputs["encoder_hidden_states"] = text
        elif name == "mask" and value is not None:
            if predict.channels is not None:
                predict.channels = predict.channels.clone()
                predict.channels[:, :1] = value[-rows:]
            if self.region is not None:
                self.region.repaint = value[-rows:]
        elif name == "masked_image_latents" and predict.channels is not None:
            predict.channels = predict.channels.clone()
            predict.channels[:, 1:] = value[-rows:]


def _at(inputs: Mapping[str, Any], path: Sequence[str]) -> Any:
    for key in path:
        inputs = inputs[key]
    return inputs


def _with(inputs: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The inputs with one of them replaced; mappings inside may be shared, so they are not changed."""
    key, *rest = path
    return {**inputs, key: _with(inputs[key], rest, value) if rest else value}
