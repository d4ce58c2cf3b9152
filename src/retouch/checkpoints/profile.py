"""What a checkpoint's folder says beside its weights: good settings, and the things that it knows by name.

`retouch.json` may lie in the folder. It holds `defaults` of the verbs ("all" of them, and by verb),
`square_crops`, `limits` in words, and for a checkpoint with a closed vocabulary the file of its `names`: a
list of entries with `word`, its `synonyms`, and `related` words that are no names but near.
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
        """All that it is called."""
        return (self.word, *self.synonyms)


@dataclass(frozen=True)
class Profile:
    """Empty for a checkpoint that says nothing, which is most of them."""

    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    square_crops: bool = False
    limits: Sequence[str] = ()
    names: Sequence[Known] = ()  # empty: it was trained on words of every kind

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> Profile:
        """The profile of a checkpoint that lies in a folder, the built-in one included."""
        folder = shipped_folder() if name in BUILT_IN else Path(name).expanduser()
        if not os.fspath(name) or not folder.is_dir():
            return cls()
        path = folder / PROFILE_NAME
        if not path.is_file():
            return cls()
        said = _read(path, dict)
        try:
            names = _read(folder / said.pop("names"), list) if "names" in said else []
            return cls(names=[Known(**entry) for entry in names], **said)
        except TypeError as error:
            raise CheckpointError(
                f"{path}, or the file of names that it points to, has an entry that is not known "
                f"({error}). Known are defaults, square_crops, limits and names; and word, synonyms and "
                f"related. Correct it, or remove the file."
            ) from error

    def defaults_of(self, verb: str) -> dict[str, Any]:
        """Settings of a verb that are good for this checkpoint."""
        return {**self.defaults.get("all", {}), **self.defaults.get(verb, {})}

    def named_in(self, prompt: str) -> list[str]:
        """The things that a prompt names, of those that are known."""
        words = f" {' '.join(_words(prompt))} "
        return [
            known.word
            for known in self.names
            if any(f" {' '.join(_words(spelling))} " in words for spelling in known.spellings)
        ]

    def near(self, prompt: str, count: int = 4) -> list[str]:
        """Known names that come near a prompt's words, by what they mean first and then by spelling."""
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
            f"{PROFILE_NAME}: a checkpoint needs none."
        ) from error
    return value
