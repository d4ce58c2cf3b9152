"""Networks for erasing as models: an ONNX file erases, and extends photos, without torch and a prompt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from retouch.checkpoints.onnx_files import SUFFIX, find_files, open_onnx
from retouch.editing import filling
from retouch.editing.filling import MASK_OPTIONS, Method
from retouch.editing.models import ERASER_NAMES, named, resolve
from retouch.editing.moebius import FILES, moebius_of
from retouch.editing.networks import Network, network_of
from retouch.editing.options import Options
from retouch.editing.result import Edit
from retouch.errors import InputError, errors_about
from retouch.images.crops import Crop, crops
from retouch.images.mask import Mask

# Around a hole; but a crop is no smaller than the network's square, which is MI-GAN's own rule.
_CONTEXT = "50%"


class Eraser:
    """The verbs on one loaded network. `load_eraser` makes it."""

    def __init__(self, network: Network, model: str) -> None:
        self.network, self.model = network, model
        options = [*MASK_OPTIONS, "feather", "seed", "progress"]
        if network.is_seeded:
            options.append("variations")
        self._method = Method(
            "no option of a network for erasing, which continues the surroundings. It takes "
            f'{", ".join(options)}. Name another kind of model, such as model="sd15-inpaint"',
            tuple(options),
            {},
            self._crops,
            self._fill,
            {"model": model},
        )

    def __repr__(self) -> str:
        return f"Eraser({self.model!r}, {self.network.title} at {self.network.side} px)"

    def erase(self, photo: Any, mask: Any, **options: Any) -> Edit:
        """Remove what is under the mask, and a pixel or two more, by continuing its surroundings."""
        return filling.erase(photo, mask, method=self._method, **options)

    def outpaint(self, photo: Any, prompt: str = "", **options: Any) -> Edit:
        """Continue the photo beyond its edges, by pixels or to an aspect; a prompt is refused."""
        if prompt.strip():
            raise refusal(self, "outpaint with a prompt")
        return filling.outpaint(photo, method=self._method, **options)

    def inpaint(self, photo: Any, mask: Any, prompt: str = "", **options: Any) -> Edit:
        """Refuse: a network for erasing reads no prompt."""
        raise refusal(self, "inpaint")

    def _crops(self, mask: Mask, source: np.ndarray | None) -> list[Crop]:
        side = self.network.side
        found = crops(mask, side, context=_CONTEXT, least=side, square=True)
        return [Crop(crop.box, side, side) for crop in found]

    def _fill(
        self,
        pixels: np.ndarray,
        mask: Mask,
        usable: np.ndarray | None,
        options: Options,
        seed: int,
        tell: Any,
    ) -> np.ndarray:
        return self.network.paint(pixels, mask.inside, seed, tell)


def refusal(model: Any, verb: str) -> InputError:
    """Return the error that a network for erasing is asked to paint something."""
    name = model.model if isinstance(model, Eraser) else str(model)
    return InputError(
        f"model={name!r} is a network for erasing, which reads no prompt, and {verb} paints one. "
        'Use erase or outpaint without a prompt, or another model, such as model="sd15-inpaint".',
        parameter="model",
    )


def names_eraser(model: Any) -> bool:
    """Return whether a model's name (None: RETOUCH_MODEL's) stands for a network for erasing."""
    if model is not None and not isinstance(model, str | os.PathLike):
        return isinstance(model, Eraser)
    name = named(model)
    return name is not None and (_is_one_file(name) or _is_moebius(name))


def _is_one_file(name: str | os.PathLike[str]) -> bool:
    return str(resolve(name)).lower().endswith(SUFFIX)


def _is_moebius(name: str | os.PathLike[str]) -> bool:
    place = resolve(name)
    is_published = place == ERASER_NAMES["moebius"].repository
    return is_published or all((Path(place).expanduser() / file).is_file() for file in FILES)


def eraser_files(name: str | os.PathLike[str], **location: Any) -> list[Path]:
    """Return the local paths of a network's files; `location`: the options of checkpoints.hub.Repository."""
    return find_files(resolve(name), FILES if _is_moebius(name) else (), **location)


def open_network(paths: list[Path], device: Any = None) -> Network:
    """Return the network in one file, or in those of Moebius."""
    sessions = [open_onnx(path, device) for path in paths]
    if len(sessions) > 1:
        return moebius_of(sessions, str(paths[0].parent))
    return network_of(sessions[0], paths[0].name)


def load_eraser(
    model: str | os.PathLike[str], *, device: Any = None, dtype: Any = None, **options: Any
) -> Eraser:
    """Return the eraser of an ONNX file: a short name, a path, or 'org/name/file.onnx' on the hub.

    `device`: "cpu" (the default) or "cuda".
    """
    for name, value in {"dtype": dtype, **options}.items():
        if value is not None:
            raise InputError(
                f"{name}={value!r} is an option of diffusion models. An ONNX file has its own numbers and "
                f"kinds. Leave {name} out.",
                parameter=name,
            )
    with errors_about("model"):
        network = open_network(eraser_files(model), device)
    return Eraser(network, str(model))
