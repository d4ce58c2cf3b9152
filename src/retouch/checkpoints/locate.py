"""From a name to files on this machine: a local folder, or a repository of the hub through its cache.

It decides which files of a checkpoint are needed and makes sure that they are there. It reads none of
them except the card that lists a pipeline's components.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from retouch.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by name; nothing is read or fetched before it is asked for."""

    name: str
    variant: str | None = None

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
    ) -> Checkpoint:
        return cls(os.fspath(name), variant)

    def fetch(self, subfolders: Iterable[str | None]) -> Path:
        if not os.path.isdir(self.name):
            raise CheckpointError(f"{self.name} is not a folder. Only local folders are accepted so far.")
        return Path(self.name)
