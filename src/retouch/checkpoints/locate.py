"""From a name to files on this machine: a local folder, or a repository of the hub through its cache.

It decides which files of a checkpoint are needed and sees that they are there; the cache is
huggingface_hub's own, so a checkpoint that another library fetched is found. It reads none of the
files except the card that lists a pipeline's components.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from retouch.checkpoints.listing import (
    CARD_NAME,
    INDEX_NAME,
    OTHER_NAMES,
    TOKENIZER_NAMES,
    Listing,
    expanded,
    implied,
    listing_of_folder,
)
from retouch.checkpoints.shipped import BUILT_IN, shipped_folder
from retouch.checkpoints.tensors import WeightFiles, choose_weights, find_weights
from retouch.errors import CheckpointError, InputError, OfflineError

_SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")


@dataclass
class Checkpoint:
    """A checkpoint by name. Nothing is read or fetched before it is asked for."""

    name: str
    variant: str | None = None
    _revision: str | None = None
    _cache_dir: str | None = None
    _token: str | bool | None = None
    _local_files_only: bool = False
    _force_download: bool = False
    _use_safetensors: bool | None = None
    _folder: Path | None = None
    # The commit that the first answer came from; later ones come from the same.
    _commit: str | None = None
    _variants: dict[str, str | None] = field(default_factory=dict)
    # Parts that are in another folder than the one called like them.
    _homes: Mapping[str, str] = field(default_factory=dict)

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
        """The built-in one by its name, a local folder if there is one, else a repository of the hub."""
        if force_download and local_files_only:
            raise InputError(
                "force_download=True and local_files_only=True contradict each other. The first asks the "
                "hub, the second forbids it. Pass one of them."
            )
        text = os.fspath(name)
        is_built_in = name in BUILT_IN  # as a word: a Path is a folder, whatever it is called
        folder = shipped_folder() if is_built_in else Path(text).expanduser()
        is_here = bool(text) and folder.is_dir()
        if not is_here:
            _refuse_what_is_no_repository(text, folder, is_path=not isinstance(name, str))
        return cls(
            name=text,
            variant=variant,
            _revision=revision,
            _cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            _token=token,
            _local_files_only=local_files_only,
            _force_download=force_download,
            _use_safetensors=use_safetensors,
            _folder=folder if is_here else None,
            _homes=BUILT_IN[text] if is_built_in else {},
        )

    def index(self) -> dict[str, Any]:
        """The card of a pipeline: which class each of its components is."""
        path = self._provide(self._index_alone) / INDEX_NAME
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as JSON ({error}). The list of a pipeline's components is expected. "
                f"Download it again (force_download=True) or save it again."
            ) from error
        if not isinstance(index, dict):
            raise CheckpointError(
                f"{path} holds a JSON {type(index).__name__}. A dictionary of components is expected. "
                f"Download it again (force_download=True) or save it again."
            )
        return index

    def card(self) -> dict[str, Any]:
        """What the repository's page says in the head of its README.md; nothing where there is none."""
        from huggingface_hub import metadata_load

        path = self._provide(_card_alone) / CARD_NAME
        if not path.is_file():
            return {}
        try:
            return dict(metadata_load(path) or {})
        except Exception as error:  # yaml has errors of its own
            raise CheckpointError(
                f"{path} has a head that cannot be read ({_brief(error)}). YAML between two lines of --- is "
                "expected. Download it again (force_download=True) or correct it."
            ) from error

    def beside(self, name: str) -> Checkpoint:
        """Another checkpoint that this one names: a folder in it, or a repository found in the same way."""
        inside = None if self._folder is None else self._folder / name
        is_here = inside is not None and inside.is_dir()
        return Checkpoint.open(
            inside if inside is not None and is_here else name,
            variant=self.variant,
            cache_dir=self._cache_dir,
            token=self._token,
            local_files_only=self._local_files_only,
            force_download=self._force_download,
            use_safetensors=self._use_safetensors,
        )

    def home_of(self, part: str) -> str:
        """The folder that a part of it is in."""
        return self._homes.get(part, part)

    def fetch(self, subfolders: Iterable[str | None], *, weights: bool = True) -> Path:
        """The local folder that holds at least these parts of the checkpoint, None being its root.

        At least one part must have the variant; those without it are taken plain, with a warning.
        `variant_in` tells which part came in which. Without `weights` settings and tokenizers alone come.
        """
        wanted = [(subfolder or "").strip("/") for subfolder in subfolders]
        folder = self._provide(lambda listing: self._needed(listing, wanted, weights))
        plain = [part or "the root" for part, variant in self._variants.items() if variant != self.variant]
        if plain:
            warnings.warn(
                f"{self.name} has variant={self.variant!r} only for some of its weights. For "
                f"{', '.join(plain)} "
                f"those without a variant are used. Leave variant out to have all of one kind.",
                stacklevel=3,
            )
        return folder

    def choose_file(self, folder: str, choose: Callable[[Sequence[str]], str]) -> Path:
        """One file of a folder of the checkpoint: the one that `choose` picks from the names in there."""
        chosen = ""

        def needed(listing: Listing) -> list[str]:
            nonlocal chosen
            chosen = _join(folder, choose(listing.folders.get(folder, ())))
            return [chosen]

        return self._provide(needed) / chosen

    def variant_in(self, subfolder: str | None) -> str | None:
        """The variant of a fetched part's weights; None means plain ones."""
        return self._variants.get((subfolder or "").strip("/"))

    def _index_alone(self, listing: Listing) -> list[str]:
        names = listing.folders.get("", ())
        if INDEX_NAME in names:
            return [INDEX_NAME]
        if "config.json" in names:
            advice = "It holds a single model; load it with the class of that model."
        else:
            advice = "Check the name, or whether the pipeline is in a folder of it."
        raise CheckpointError(
            f"{self.name} has no {INDEX_NAME}. A folder or repository that a pipeline was saved to is "
            f"expected. {advice}"
        )

    def _needed(self, listing: Listing, wanted: Sequence[str], weights: bool = True) -> list[str]:
        needed, with_weights = [], []
        for part in expanded(wanted, listing.folders):
            names = listing.folders.get(part)
            if names is None:
                there = ", ".join(sorted(folder for folder in listing.folders if folder)) or "none"
                raise CheckpointError(
                    f"{self.name} has no folder {part!r}. Folders that are there: {there}. Check "
                    f"`subfolder`, or whether this is the checkpoint you mean."
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
        """The local folder with the files that `needed` picks from the checkpoint's listing."""
        if self._folder is not None:
            return self._complete(self._folder, needed(listing_of_folder(self._folder)))
        wanted, missing = None, "nothing of it is cached"
        if not self._force_download and (folder := self._cached_folder()) is not None:
            self._commit = folder.name
            listing = self._cached_listing(folder)
            try:
                wanted = needed(listing)
            except CheckpointError as error:
                if listing.is_whole:
                    raise
                missing = f"the cache lacks a part of it: {error}"
            else:
                absent = _absent(folder, wanted)
                if not absent:
                    return folder
                missing = f"the cache lacks {len(absent)} of its files, first {absent[0]}"
                if not listing.is_whole:
                    wanted = None
        self._refuse_if_offline(missing)
        if wanted is None:
            wanted = needed(self._ask_for_listing(missing))
        return self._download(wanted, missing)

    def _cached_folder(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            # It makes no request, and with no pattern it wants no file to be there.
            folder = snapshot_download(
                self.name,
                revision=self._commit or self._revision,
                cache_dir=self._cache_dir,
                local_files_only=True,
                allow_patterns=[],
            )
        except LocalEntryNotFoundError:
            return None
        return Path(folder)

    def _cached_listing(self, folder: Path) -> Listing:
        try:
            from huggingface_hub import get_cached_repo_tree
            from huggingface_hub.errors import CachedRepoTreeNotFoundError
        except ImportError:  # older releases keep no listing
            return listing_of_folder(folder, is_whole=False)
        try:
            files = get_cached_repo_tree(self.name, revision=folder.name, cache_dir=self._cache_dir)
        except CachedRepoTreeNotFoundError:
            return listing_of_folder(folder, is_whole=False)
        return Listing.of(file.path for file in files)

    def _refuse_if_offline(self, missing: str) -> None:
        from huggingface_hub import constants

        if self._local_files_only:
            raise self._offline(missing, "local_files_only=True forbids to ask the hub")
        if constants.HF_HUB_OFFLINE:
            raise self._offline(missing, "HF_HUB_OFFLINE is set, so the hub is not asked")

    def _ask_for_listing(self, missing: str) -> Listing:
        from huggingface_hub import HfApi

        api = HfApi(token=self._token, library_name="retouch")
        try:
            info = api.model_info(self.name, revision=self._commit or self._revision, timeout=10)
        # What the client raises differs between its releases and those of the HTTP library below it.
        except Exception as error:
            raise self._refusal(error, missing) from error
        return Listing.of(file.rfilename for file in info.siblings or ())

    def _download(self, wanted: Sequence[str], missing: str) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                self.name,
                revision=self._commit or self._revision,
                cache_dir=self._cache_dir,
                token=self._token,
                force_download=self._force_download,
                allow_patterns=[escape(name) for name in wanted],
                library_name="retouch",
                tqdm_class=_one_bar(),
            )
        except HfHubHTTPError as error:
            raise self._refusal(error, missing) from error
        except LocalEntryNotFoundError as error:  # the client's word for a hub that does not answer
            raise self._refusal(error.__cause__ or error, missing) from error
        except Exception as error:
            raise CheckpointError(
                f"The download of {self._asked} broke off ({_brief(error)}). Files that arrived whole are "
                f"kept, and no half of one counts as there. Check the connection and the free disk space, "
                f"then make the same call again: it goes on from there."
            ) from error
        self._commit = Path(folder).name
        return self._complete(Path(folder), wanted)

    def _complete(self, folder: Path, names: Sequence[str]) -> Path:
        absent = _absent(folder, names)
        if absent:
            raise CheckpointError(
                f"{self.name} lacks {len(absent)} of the {len(names)} files that it needs, first "
                f"{absent[0]}. A whole checkpoint is expected. Save or download it again."
            )
        return folder

    @property
    def _asked(self) -> str:
        settings = {"revision": self._revision, "variant": self.variant}
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        return f"{self.name} ({given})" if given else self.name

    def _offline(self, missing: str, reason: str) -> OfflineError:
        return OfflineError(
            f"{self._asked} is not on this machine ({missing}), and {reason}. A local folder or a cached "
            f"checkpoint loads without the hub. Load it once with a connection, pass the path of a folder "
            f"that holds it, or set HF_HOME or cache_dir if it is cached elsewhere."
        )

    def _refusal(self, error: BaseException, missing: str) -> CheckpointError:
        """What the hub's answer means, or that there was none."""
        from huggingface_hub import constants, errors

        page = f"{constants.ENDPOINT}/{self.name}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self.name} is gated. It loads for accounts that accepted its conditions. Accept them at "
                f"{page}, then pass that account's token= or log in with `hf auth login`."
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return CheckpointError(
                f"{self.name} is neither a local folder nor a repository that {constants.ENDPOINT} shows to "
                f"you. A folder, or the id of a public repository or of a private one with its token, is "
                f"accepted. Check the spelling; for a private one pass token= or log in with `hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            if self._commit is not None and self._commit != self._revision:
                return CheckpointError(
                    f"{self.name} is cached in part, at a commit that the hub no longer has "
                    f"({self._commit}). All files must be of one commit. Pass force_download=True to fetch "
                    f"the present one."
                )
            revision = self._revision or "main"
            return CheckpointError(
                f"{self.name} has no revision {revision!r}. A branch, a tag or a commit of it is "
                f"accepted: see {page}/tree/main. If {revision!r} is a kind of weights, pass it as "
                f"variant=."
            )
        if status is not None and status < 500:
            return CheckpointError(
                f"The hub refused {self._asked} ({error}). A repository with a diffusion model is expected. "
                f"Check the name at {page}."
            )
        return self._offline(missing, f"{constants.ENDPOINT} gave no answer ({_brief(error)})")


def _card_alone(listing: Listing) -> list[str]:
    # A cache that does not know what it lacks may lack this, too.
    has_one = CARD_NAME in listing.folders.get("", ()) or not listing.is_whole
    return [CARD_NAME] if has_one else []


def _refuse_what_is_no_repository(name: str, folder: Path, is_path: bool) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name.lower().endswith(_SINGLE_FILE_SUFFIXES):
        raise CheckpointError(
            f"{name} names a single file. A folder or a hub id like 'org/name' is accepted here. Single "
            f"files come by from_single_file."
        )
    looks_like_a_path = (
        name.startswith((".", "~")) or "\\" in name or name.count("/") > 1 or folder.is_absolute()
    )
    if is_path or looks_like_a_path or (name and folder.exists()):
        raise CheckpointError(
            f"{name} is {'a file' if folder.exists() else 'a path, and nothing is there'}. A folder or a hub "
            f"id like 'org/name' is accepted. Check the path; relative ones start at {Path.cwd()}."
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder on this machine nor a hub id. A folder or an id like 'org/name' "
            f"is accepted. Check the spelling."
        ) from error


def _join(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _absent(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _brief(error: BaseException) -> str:
    """The innermost reason, on one line: the client wraps a failed connection in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _one_bar() -> type:
    """The hub's progress bar for bytes written; its others (files, bytes received) stay hidden."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            is_total = settings.get("unit") == "B" and not str(settings.get("name")).endswith(".transfer")
            if not is_total:
                settings["disable"] = True
            settings["desc"] = "Downloading"
            super().__init__(*args, **settings)

        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            """Keep ours: the hub's speaks of how its storage works."""

    return Bar
