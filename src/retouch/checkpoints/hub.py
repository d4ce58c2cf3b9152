"""A repository of the hub, read through huggingface_hub's own cache, which other libraries share.

Files in the cache are used without a request if all of them are there. Each failure of the hub or the
connection becomes an error that says what to do. The caller chooses the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from retouch.checkpoints.listing import Listing, absent, listing_of_folder, require_all
from retouch.errors import CheckpointError, OfflineError

_SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")


@dataclass
class Repository:
    """A repository by its id, and the options to reach it. It makes no request before files are needed."""

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False
    variant: str | None = None  # for errors alone
    # The commit of the first files; later ones come from the same commit.
    _commit: str | None = None

    def provide(self, needed: Callable[[Listing], list[str]]) -> Path:
        """Return the local folder with the files that `needed` chooses from the repository's listing."""
        wanted, missing = None, "nothing of it is cached"
        if not self.force_download and (folder := self._cached_folder()) is not None:
            self._commit = folder.name
            listing = self._cached_listing(folder)
            try:
                wanted = needed(listing)
            except CheckpointError as error:
                if listing.is_whole:
                    raise
                missing = f"the cache lacks a part of it: {error}"
            else:
                lacking = absent(folder, wanted)
                if not lacking:
                    return folder
                missing = f"the cache lacks {len(lacking)} of its files, first {lacking[0]}"
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
            # This makes no request, and with no pattern it needs no file in the cache.
            folder = snapshot_download(
                self.name,
                revision=self._commit or self.revision,
                cache_dir=self.cache_dir,
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
        except ImportError:  # older releases do not cache listings
            return listing_of_folder(folder, is_whole=False)
        try:
            files = get_cached_repo_tree(self.name, revision=folder.name, cache_dir=self.cache_dir)
        except CachedRepoTreeNotFoundError:
            return listing_of_folder(folder, is_whole=False)
        return Listing.of(file.path for file in files)

    def _refuse_if_offline(self, missing: str) -> None:
        from huggingface_hub import constants

        if self.local_files_only:
            raise self._offline(missing, "local_files_only=True allows no request to the hub")
        if constants.HF_HUB_OFFLINE:
            raise self._offline(missing, "HF_HUB_OFFLINE is set, which allows no request to the hub")

    def _ask_for_listing(self, missing: str) -> Listing:
        from huggingface_hub import HfApi

        api = HfApi(token=self.token, library_name="retouch")
        try:
            info = api.model_info(self.name, revision=self._commit or self.revision, timeout=10)
        # The classes of errors differ between releases of the client and of its HTTP library.
        except Exception as error:
            raise self._refusal(error, missing) from error
        return Listing.of(file.rfilename for file in info.siblings or ())

    def _download(self, wanted: Sequence[str], missing: str) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                self.name,
                revision=self._commit or self.revision,
                cache_dir=self.cache_dir,
                token=self.token,
                force_download=self.force_download,
                allow_patterns=[escape(name) for name in wanted],
                library_name="retouch",
                tqdm_class=_one_bar(),
            )
        except HfHubHTTPError as error:
            raise self._refusal(error, missing) from error
        except LocalEntryNotFoundError as error:  # the client raises this if the hub does not answer
            raise self._refusal(error.__cause__ or error, missing) from error
        except Exception as error:
            raise CheckpointError(
                f"The download of {self._asked} broke off ({shortened(error)}). Complete files are kept; "
                f"partial ones are not used. Check the connection and the free disk space, then make the "
                f"same call again: it continues the download.",
                parameter="name",
            ) from error
        self._commit = Path(folder).name
        return require_all(self.name, Path(folder), wanted)

    @property
    def _asked(self) -> str:
        settings = {"revision": self.revision, "variant": self.variant}
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items() if value is not None)
        return f"{self.name} ({given})" if given else self.name

    def _offline(self, missing: str, reason: str) -> OfflineError:
        return OfflineError(
            f"{self._asked} is not on this machine ({missing}), and {reason}. A local folder or a cached "
            f"checkpoint loads without the hub. Load it once with a connection, pass the path of its "
            f"folder, or set HF_HOME or cache_dir if it is cached elsewhere.",
            parameter="name",
        )

    def _refusal(self, error: BaseException, missing: str) -> CheckpointError:
        """Return an error that explains the hub's answer, or that there was none."""
        from huggingface_hub import constants, errors

        page = f"{constants.ENDPOINT}/{self.name}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self.name} is gated. It loads for accounts that accepted its conditions. Accept them at "
                f"{page}, then pass that account's token= or log in with `hf auth login`.",
                parameter="token",
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            return CheckpointError(
                f"{self.name} is neither a local folder nor a repository that {constants.ENDPOINT} shows to "
                f"you. A folder, or the id of a public repository or of a private one with its token, is "
                f"accepted. Check the spelling; for a private one pass token= or log in with `hf auth "
                f"login`.",
                parameter="name",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            if self._commit is not None and self._commit != self.revision:
                return CheckpointError(
                    f"{self.name} is cached in part, at a commit that the hub no longer has "
                    f"({self._commit}). All files must be of one commit. Pass force_download=True to "
                    f"download the present one.",
                    parameter="force_download",
                )
            revision = self.revision or "main"
            return CheckpointError(
                f"{self.name} has no revision {revision!r}. A branch, a tag or a commit of it is "
                f"accepted: see {page}/tree/main. If {revision!r} is a kind of weights, pass it as "
                f"variant=.",
                parameter="revision",
            )
        if status is not None and status < 500:
            return CheckpointError(
                f"The hub refused {self._asked} ({error}). A repository with a diffusion model is expected. "
                f"Check the name at {page}.",
                parameter="name",
            )
        return self._offline(missing, f"{constants.ENDPOINT} gave no answer ({shortened(error)})")


def check_repository_id(name: str, folder: Path, is_path: bool) -> None:
    """Check that a name, for which there is no folder, can be the id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name.lower().endswith(_SINGLE_FILE_SUFFIXES):
        raise CheckpointError(
            f"{name} names a single file. A folder or a hub id like 'org/name' is accepted here. Load a "
            f"single file with from_single_file.",
            parameter="name",
        )
    looks_like_a_path = (
        name.startswith((".", "~")) or "\\" in name or name.count("/") > 1 or folder.is_absolute()
    )
    if is_path or looks_like_a_path or (name and folder.exists()):
        raise CheckpointError(
            f"{name} is {'a file' if folder.exists() else 'a path that does not exist'}. A folder or a hub "
            f"id like 'org/name' is accepted. Check the path; relative ones start at {Path.cwd()}.",
            parameter="name",
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder on this machine nor a hub id. A folder or an id like 'org/name' "
            f"is accepted. Check the spelling.",
            parameter="name",
        ) from error


def shortened(error: BaseException) -> str:
    """Return the innermost reason on one line; the client wraps a failed connection in its own advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _one_bar() -> type:
    """Return a class for the hub's progress bars that shows the one of the bytes written and hides others."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            is_total = settings.get("unit") == "B" and not str(settings.get("name")).endswith(".transfer")
            if not is_total:
                settings["disable"] = True
            settings["desc"] = "Downloading"
            super().__init__(*args, **settings)

        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            """Keep our description; the hub's is about its storage."""

    return Bar
