"""A checkpoint's profile: good settings for it, and the things that it knows by name.

A checkpoint's folder may have a `retouch.json` with `defaults` of the verbs (for "all", and by verb),
`square_crops`, and `limits` as sentences. A checkpoint that was trained on a fixed list of names also gives
the file of its `names`: a list of entries with `word`, its `synonyms`, and `related` words for suggestions.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.checkpoints.shipped import BUILT_IN, shipped_folder
from retouch.errors import CheckpointError

PROFILE_NAME = "retouch.json"


@dataclass(frozen=True)
class Known:
    """A thing that a checkpoint knows by name."""

    word: str
    synonyms: Sequence[str] = ()
    related: Sequence[str] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names of the thing."""
        return (self.word, *self.synonyms)


@dataclass(frozen=True)
class Profile:
    """The profile of a checkpoint, empty for one without a `retouch.json`."""

    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    square_crops: bool = False
    limits: Sequence[str] = ()
    names: Sequence[Known] = ()  # empty for a checkpoint that was trained on captions of all kinds

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> Profile:
        """Read the profile of a local checkpoint, also of the built-in one."""
        folder = shipped_folder() if name in BUILT_IN else Path(name).expanduser()
        if not os.fspath(name) or not folder.is_dir():
            return cls()
        path = folder / PROFILE_NAME
        if not path.is_file():
            return cls()
        entries = _read(path, dict)
        try:
            names = _read(folder / entries.pop("names"), list) if "names" in entries else []
            return cls(names=[Known(**entry) for entry in names], **entries)
        except TypeError as error:
            raise CheckpointError(
                f"{path}, or its file of names, has an unknown entry ({error}). Known are defaults, "
                f"square_crops, limits and names; and in a file of names word, synonyms and related. "
                f"Correct it, or remove the file.",
                parameter="name",
            ) from error

    def defaults_of(self, verb: str) -> dict[str, Any]:
        """Return good settings of a verb for this checkpoint."""
        return {**self.defaults.get("all", {}), **self.defaults.get(verb, {})}

    def named_in(self, prompt: str) -> list[str]:
        """Return the known things that a prompt names."""
        words = f" {' '.join(_words(prompt))} "
        return [
            known.word
            for known in self.names
            if any(f" {' '.join(_words(spelling))} " in words for spelling in known.spellings)
        ]

    def near(self, prompt: str, count: int = 4) -> list[str]:
        """Return known names that are similar to a prompt's words: first by meaning, then by spelling."""
        words = [word for word in _words(prompt) if len(word) > 2]
        found = [known.word for word in words for known in self.names if _singular(word) in known.related]
        spelled = {spelling: known.word for known in self.names for spelling in known.spellings}
        spelled |= {
            part: word for name, word in spelled.items() for part in _words(name) if len(part) > 2
        } | spelled
        for text in [" ".join(words), *words]:
            for match in difflib.get_close_matches(text, spelled, n=count, cutoff=0.75):
                found.append(spelled[match])
        return list(dict.fromkeys(found))[:count]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"a {type(value).__name__}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a JSON {kind.__name__} ({error}). Correct it, or remove "
            f"{PROFILE_NAME}: a checkpoint needs none.",
            parameter="name",
        ) from error
    return value
