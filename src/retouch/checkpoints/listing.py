"""Which files a checkpoint holds, and which of the small ones a part needs. No file is opened here."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch.errors import CheckpointError

INDEX_NAME = "model_index.json"
CARD_NAME = "README.md"

# What a component may need beside its weights. Everything else in a repository stays there.
TOKENIZER_NAMES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    }
)
OTHER_NAMES = frozenset({INDEX_NAME, "config.json", "scheduler_config.json", "preprocessor_config.json"})


@dataclass(frozen=True)
class Listing:
    """The file names of each folder of a checkpoint, "" being its root."""

    folders: Mapping[str, Sequence[str]]
    # False for a cache that does not know what the repository holds beyond the files that are there.
    is_whole: bool = True

    @classmethod
    def of(cls, paths: Iterable[str], is_whole: bool = True) -> Listing:
        folders: dict[str, list[str]] = {"": []}
        for path in paths:
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, []).append(name)
        return cls(folders, is_whole)


def listing_of_folder(folder: Path, is_whole: bool = True) -> Listing:
    # Links are followed, as people link components into place; two levels hold every layout we know.
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        part = Path(parent).relative_to(folder)
        if len(part.parts) >= 2:
            folders.clear()
        paths += [(part / name).as_posix() for name in names]
    return Listing.of(paths, is_whole)


def expanded(wanted: Sequence[str], folders: Iterable[str]) -> list[str]:
    """The parts that are asked for; one with a star means all folders that fit it, which may be none."""
    return [
        folder
        for part in wanted
        for folder in (sorted(fnmatch.filter(folders, part)) if "*" in part else [part])
    ]


def implied(small: Iterable[str]) -> set[str]:
    """Files that must exist since others do, for a cache that does not know what it lacks."""
    present = TOKENIZER_NAMES.intersection(small)
    if not present:
        return set()
    words = {"tokenizer.json"} if "tokenizer.json" in present else {"vocab.json", "merges.txt"}
    return {"tokenizer_config.json"} | words


def absent(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of the files are not there."""
    return [name for name in names if not (folder / name).is_file()]


def require_all(checkpoint: str, folder: Path, names: Sequence[str]) -> Path:
    """The folder, which must hold all these files of the checkpoint."""
    lacking = absent(folder, names)
    if lacking:
        raise CheckpointError(
            f"{checkpoint} lacks {len(lacking)} of the {len(names)} files that it needs, first "
            f"{lacking[0]}. A whole checkpoint is expected. Save or download it again."
        )
    return folder
