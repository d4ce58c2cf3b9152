"""Files in the ONNX format: found here or on the hub, and opened with onnxruntime, an optional package.

Neither needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retouch.checkpoints.hub import Repository
from retouch.checkpoints.listing import Listing
from retouch.errors import CheckpointError, DeviceError, InputError

SUFFIX = ".onnx"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def find_files(name: str | os.PathLike[str], wanted: Sequence[str] = (), **options: Any) -> list[Path]:
    """Return the local paths of a file (a path, or 'org/name/file.onnx' on the hub).

    With `wanted`, `name` is a folder or a repository, and these are names of files in it. `options` are
    those of `Repository`.
    """
    place = Path(name).expanduser()
    if wanted and place.is_dir():
        return _all_there(place, wanted)
    if place.is_file():
        return [place]
    text = os.fspath(name)
    parts = text.split("/")
    inside = list(wanted) or ["/".join(parts[2:])]
    is_on_hub = isinstance(name, str) and (len(parts) == 2 if wanted else len(parts) > 2)
    if not is_on_hub or "\\" in text or parts[0] in ("", ".", "..", "~"):
        raise CheckpointError(
            f"{name} is not there. A path, or 'org/name/file.onnx' on the hub, is accepted. Check the path; "
            f"relative ones start at {Path.cwd()}.",
            parameter="name",
        )
    repository = "/".join(parts[:2])

    def needed(listing: Listing) -> list[str]:
        there = [
            f"{folder}/{file}".lstrip("/") for folder, files in listing.folders.items() for file in files
        ]
        if lacking := [file for file in inside if file not in there]:
            others = ", ".join(sorted(file for file in there if file.endswith(SUFFIX))) or "none"
            raise CheckpointError(
                f"{repository} has no file {lacking[0]}. Its ONNX files: {others}. Check the name.",
                parameter="name",
            )
        return inside

    return _all_there(Repository(repository, **options).provide(needed), inside)


def _all_there(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}. It needs {', '.join(names)}. Download it again.", parameter="name"
            )
    return [folder / name for name in names]


def open_onnx(path: Path, device: str | None = None) -> Any:
    """Return an onnxruntime.InferenceSession of a file, on "cpu" (the default) or "cuda"."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            f"{path.name} is an ONNX file, and the package onnxruntime, which runs it, is not installed. "
            'Install it with pip install "retouch[onnx]", or leave the model out.',
            parameter="model",
        ) from None
    wanted = _PROVIDERS.get(str(device or "cpu").split(":")[0])
    if wanted not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"device={device!r}: onnxruntime runs ONNX files on the CPU, and with the package "
            "onnxruntime-gpu on cuda. Leave device out, or install that package.",
            parameter="device",
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; warnings are about how the file was exported
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # torch obeys it, too
    settings.intra_op_num_threads = int(threads) if threads.isdigit() else 0  # 0: every core
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=[wanted])
    except Exception as error:  # its classes are not public
        raise CheckpointError(
            f"{path} cannot be opened as an ONNX file ({' '.join(str(error).split())[:200]}). Download it "
            "again, or check whether it is one.",
            parameter="name",
        ) from error
