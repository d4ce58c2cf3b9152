"""Small files that add to a checkpoint (LoRA, textual inversion, IP-Adapter): finding and reading them.

They are given by a path, or are in a folder or a repository of the hub. Their names follow no convention.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.tensors import PICKLED, TensorFile, unpickle
from retouch.errors import CheckpointError

_SAFE = ".safetensors"


def find_adapter_file(
    name: str | os.PathLike[str],
    usual: str,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    **options: Any,
) -> Path:
    """Return the path of an adapter's file: `name` itself, or a file in that folder or repository.

    In a folder it is the file `weight_name`; without that, the one called `usual`, or the only one with
    weights. `options` are those of `Checkpoint.open`.
    """
    endings = PICKLED if use_safetensors is False else (_SAFE,)
    path = Path(name).expanduser()
    if path.is_file() and not weight_name:
        _refuse_pickled(str(path), use_safetensors)
        return path
    if str(name).lower().endswith((_SAFE, *PICKLED)) and not path.is_dir():
        raise CheckpointError(
            f"{name} is not there. The path of a file, a folder, or a hub id like 'org/name' with "
            f"weight_name is accepted. Check the path; relative ones start at {Path.cwd()}.",
            parameter="name",
        )
    folder, _, file_name = (weight_name or "").rpartition("/")
    part = "/".join(piece.strip("/") for piece in (subfolder or "", folder) if piece)

    def choose(names: Sequence[str]) -> str:
        where = f"{name}/{part}" if part else str(name)
        there = sorted(other for other in names if other.endswith((_SAFE, *PICKLED)))
        wanted = [other for other in there if other.endswith(endings)] or there
        wanted = [other for other in wanted if Path(other).stem == usual] or wanted
        if file_name:
            wanted = [other for other in names if other == file_name]
        if len(wanted) != 1:
            found = f"no file {file_name}" if file_name else f"{len(wanted) or 'no'} files with weights"
            listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            raise CheckpointError(
                f"{where} has {found}. Its files with weights are: {listed or 'none'}. Name one of them by "
                f"weight_name, and its folder by subfolder.",
                parameter="weight_name",
            )
        _refuse_pickled(f"{where}/{wanted[0]}", use_safetensors)
        return wanted[0]

    checkpoint = Checkpoint.open(name, use_safetensors=use_safetensors, **options)
    return checkpoint.choose_file(part, choose)


def read_adapter_file(path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Return the contents of a file, with tensors as stored, and the metadata of a safetensors file."""
    if path.suffix.lower() in PICKLED:
        content = unpickle(path)
        return _copied(content if isinstance(content, dict) else {"": content}), {}
    file = TensorFile(path)
    return _copied({key: file.read(key) for key in file.shapes}), file.metadata


def _copied(content: dict[str, Any]) -> dict[str, Any]:
    """Copy the tensors. They may be mapped from a file that is moved or overwritten while they are in use."""
    return {key: value.clone() if hasattr(value, "clone") else value for key, value in content.items()}


def _refuse_pickled(name: str, use_safetensors: bool | None) -> None:
    if name.lower().endswith(PICKLED) and use_safetensors is not False:
        raise CheckpointError(
            f"{name} is pickled, and such a file can run code when it is read carelessly. Safetensors are "
            f"accepted; pass use_safetensors=False if you trust its source.",
            parameter="use_safetensors",
        )
