"""The state folder, with the downloads, weights in progress and logs of training.

Files are replaced atomically, so a kill at any moment leaves either the old or the new file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def default_state() -> Path:
    return Path.home() / ".cache" / "retouch-training"


def write_json(path: Path, value: Any) -> None:
    _replace(path, lambda partial: partial.write_text(json.dumps(value, indent=1, ensure_ascii=False)))


def save_tensors(path: Path, value: Any) -> None:
    _replace(path, lambda partial: torch.save(value, partial))


def save_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Save a folder with `save_pretrained`, so that it appears only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def load_tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
