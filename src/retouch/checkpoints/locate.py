"""A checkpoint by name: from a local folder, or from a repository of the hub through its cache.

This file chooses the files that are needed; hub.py provides them. It reads none of them except
model_index.json and README.md.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.checkpoints.hub import Repository, check_repository_id, shortened
from retouch.checkpoints.listing import (
    CARD_NAME,
    INDEX_NAME,
    OTHER_NAMES,
    TOKENIZER_NAMES,
    Listing,
    expanded,
    implied,
    listing_of_folder,
    require_all,
)
from retouch.checkpoints.shipped import BUILT_IN, shipped_folder
from retouch.checkpoints.tensors import WeightFiles, choose_weights, find_weights
from retouch.errors import CheckpointError, InputError


@dataclass
class Checkpoint:
    """A checkpoint by name. No file is read or downloaded before it is needed."""

    name: str
    variant: str | None
    _place: Path | Repository
    # The options that this one was opened with, for others that it names.
    _options: Mapping[str, Any]
    _use_safetensors: bool | None = None
    _variants: dict[str, str | None] = field(default_factory=dict)
    # The folders of parts that are not in a folder of their own name.
    _folders: Mapping[str, str] = field(default_factory=dict)

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
        """Open the built-in one by its name, or a local folder if it exists, or a repository of the hub."""
        if force_download and local_files_only:
            raise InputError(
                "force_download=True and local_files_only=True contradict each other. The first needs the "
                "hub, the second forbids its use. Pass one of them.",
                parameter="force_download",
            )
        text = os.fspath(name)
        is_built_in = name in BUILT_IN  # a string; a Path always means a folder
        folder = shipped_folder() if is_built_in else Path(text).expanduser()
        is_here = bool(text) and folder.is_dir()
        if not is_here:
            check_repository_id(text, folder, is_path=not isinstance(name, str))
        options: dict[str, Any] = {
            "variant": variant,
            "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        return cls(
            name=text,
            variant=variant,
            _place=folder if is_here else Repository(text, revision, **options),
            _options=options,
            _use_safetensors=use_safetensors,
            _folders=BUILT_IN[text] if is_built_in else {},
        )

    def index(self) -> dict[str, Any]:
        """Read model_index.json, which names the class of each component of a pipeline."""
        path = self._provide(self._index_alone) / INDEX_NAME
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as JSON ({error}). The list of a pipeline's components is expected. "
                f"Download it again (force_download=True) or save it again.",
                parameter="name",
            ) from error
        if not isinstance(index, dict):
            raise CheckpointError(
                f"{path} holds a JSON {type(index).__name__}. A dictionary of components is expected. "
                f"Download it again (force_download=True) or save it again.",
                parameter="name",
            )
        return index

    def card(self) -> dict[str, Any]:
        """Read the metadata at the head of the repository's README.md; empty if there is none."""
        from huggingface_hub import metadata_load

        path = self._provide(_card_alone) / CARD_NAME
        if not path.is_file():
            return {}
        try:
            return dict(metadata_load(path) or {})
        except Exception as error:  # yaml raises classes of its own
            raise CheckpointError(
                f"{path} has a head that cannot be read ({shortened(error)}). YAML between two lines of --- "
                "is expected. Download it again (force_download=True) or correct it.",
                parameter="name",
            ) from error

    def beside(self, name: str) -> Checkpoint:
        """Open another checkpoint that this one names: a folder in it, or a repository with these options."""
        inside = None if isinstance(self._place, Repository) else self._place / name
        found = inside if inside is not None and inside.is_dir() else name
        return Checkpoint.open(found, use_safetensors=self._use_safetensors, **self._options)

    def home_of(self, part: str) -> str:
        """Return the name of the folder that has a part."""
        return self._folders.get(part, part)

    def fetch(self, subfolders: Iterable[str | None], *, weights: bool = True) -> Path:
        """Provide these parts of the checkpoint and return its local folder; None is the root.

        At least one part must have the variant. Parts without it are loaded without a variant, with a
        warning; `variant_in` returns the variant of a part. `weights=False` provides settings and tokenizers
        only.
        """
        wanted = [(subfolder or "").strip("/") for subfolder in subfolders]
        folder = self._provide(lambda listing: self._needed(listing, wanted, weights))
        plain = [part or "the root" for part, variant in self._variants.items() if variant != self.variant]
        if plain:
            warnings.warn(
                f"{self.name} has variant={self.variant!r} only for some of its weights. For "
                f"{', '.join(plain)} those without a variant are used. Leave variant out to use these for "
                f"all parts.",
                stacklevel=3,
            )
        return folder

    def choose_file(self, folder: str, choose: Callable[[Sequence[str]], str]) -> Path:
        """Provide the file that `choose` picks from the names in a folder, and return its path."""
        chosen = ""

        def needed(listing: Listing) -> list[str]:
            nonlocal chosen
            chosen = _join(folder, choose(listing.folders.get(folder, ())))
            return [chosen]

        return self._provide(needed) / chosen

    def variant_in(self, subfolder: str | None) -> str | None:
        """Return the variant of the weights that `fetch` chose for a part; None means no variant."""
        return self._variants.get((subfolder or "").strip("/"))

    def _index_alone(self, listing: Listing) -> list[str]:
        names = listing.folders.get("", ())
        if INDEX_NAME in names:
            return [INDEX_NAME]
        if "config.json" in names:
            advice = "It is a single model; load it with the class of that model."
        else:
            advice = "Check the name, or whether the pipeline is in a folder of it."
        raise CheckpointError(
            f"{self.name} has no {INDEX_NAME}. A folder or repository that a pipeline was saved to is "
            f"expected. {advice}",
            parameter="name",
        )

    def _needed(self, listing: Listing, wanted: Sequence[str], weights: bool = True) -> list[str]:
        needed, with_weights = [], []
        for part in expanded(wanted, listing.folders):
            names = listing.folders.get(part)
            if names is None:
                there = ", ".join(sorted(folder for folder in listing.folders if folder)) or "none"
                raise CheckpointError(
                    f"{self.name} has no folder {part!r}. Its folders are: {there}. Check `subfolder`, or "
                    f"whether this is the checkpoint that you want.",
                    parameter="subfolder",
                )
            small = (TOKENIZER_NAMES | OTHER_NAMES).intersection(names)
            if not listing.is_whole:
                small |= implied(small)
            needed += [_join(part, name) for name in sorted(small)]
            is_model = "config.json" in names and not small & TOKENIZER_NAMES
            if weights and (is_model or find_weights(names) or find_weights(names, pickled=True)):
                with_weights.append(part)

        chosen, lacking = {}, {}
        for part in with_weights:
            try:
                chosen[part] = self._choose(listing, part, self.variant)
            except CheckpointError as error:
                lacking[part] = error
        if lacking and (self.variant is None or not chosen or not listing.is_whole):
            raise next(iter(lacking.values()))
        chosen |= {part: self._choose(listing, part, None) for part in lacking}
        self._variants = {part: files.variant for part, files in chosen.items()}
        return needed + [_join(part, name) for part, files in chosen.items() for name in files.names]

    def _choose(self, listing: Listing, part: str, variant: str | None) -> WeightFiles:
        return choose_weights(
            listing.folders[part],
            _join(self.name, part) if part else self.name,
            variant=variant,
            use_safetensors=self._use_safetensors,
        )

    def _provide(self, needed: Callable[[Listing], list[str]]) -> Path:
        """Return the local folder with the files that `needed` chooses from the checkpoint's listing."""
        if isinstance(self._place, Repository):
            return self._place.provide(needed)
        return require_all(self.name, self._place, needed(listing_of_folder(self._place)))


def _card_alone(listing: Listing) -> list[str]:
    # A cache without a listing of the repository may lack a README.md that the repository has.
    has_one = CARD_NAME in listing.folders.get("", ()) or not listing.is_whole
    return [CARD_NAME] if has_one else []


def _join(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name
