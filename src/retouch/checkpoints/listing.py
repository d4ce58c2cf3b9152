"""The names of a checkpoint's files, and of the small files that its parts need. No file is opened here."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch.errors import CheckpointError

INDEX_NAME = "model_index.json"
CARD_NAME = "README.md"

# Files that a component may need in addition to its weights. All others are not downloaded.
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
    """The file names in each folder of a checkpoint; "" is its root."""

    folders: Mapping[str, Sequence[str]]
    # False for a cache without a listing of the repository: there may be more files than these.
    is_whole: bool = True

    @classmethod
    def of(cls, paths: Iterable[str], is_whole: bool = True) -> Listing:
        folders: dict[str, list[str]] = {"": []}
        for path in paths:
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, []).append(name)
        return cls(folders, is_whole)


def listing_of_folder(folder: Path, is_whole: bool = True) -> Listing:
    """List the files of a local folder, two levels deep, which is enough for every known layout."""
    # Links are followed, because people link components into a folder.
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        part = Path(parent).relative_to(folder)
        if len(part.parts) >= 2:
            folders.clear()
        paths += [(part / name).as_posix() for name in names]
    return Listing.of(paths, is_whole)


def expanded(wanted: Sequence[str], folders: Iterable[str]) -> list[str]:
    """Return the wanted parts, with the matching folders in place of a part with a star."""
    return [
        folder
        for part in wanted
        for folder in (sorted(fnmatch.filter(folders, part)) if "*" in part else [part])
    ]


def implied(small: Iterable[str]) -> set[str]:
    """Return files that must exist because others do, for a cache without a listing of the repository."""
    present = TOKENIZER_NAMES.intersection(small)
    if not present:
        return set()
    words = {"tokenizer.json"} if "tokenizer.json" in present else {"vocab.json", "merges.txt"}
    return {"tokenizer_config.json"} | words


def absent(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the files that do not exist."""
    return [name for name in names if not (folder / name).is_file()]


def require_all(checkpoint: str, folder: Path, names: Sequence[str]) -> Path:
    """Check that a folder has all these files of the checkpoint, and return it."""
    lacking = absent(folder, names)
    if lacking:
        raise CheckpointError(
            f"{checkpoint} lacks {len(lacking)} of the {len(names)} files that it needs, first "
            f"{lacking[0]}. A whole checkpoint is expected. Save or download it again.",
            parameter="name",
        )
    return folder
