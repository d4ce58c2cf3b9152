"""Files that commands write: none is replaced unasked, and none is left half-written."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from retouch.errors import InputError


def default_name(photo: str, verb: str, suffix: str = ".png") -> Path:
    """`<photo>-<verb>.png` in the working folder, or the first of that name with a free number."""
    stem = Path(photo.split("?")[0]).stem or "photo"
    if photo.startswith("data:"):
        stem = "photo"
    plain = Path(f"{stem}-{verb}{suffix}")
    numbered = (plain.with_stem(f"{plain.stem}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([plain], numbered) if not path.exists())


def series(path: Path, count: int) -> list[Path]:
    """The files of several variations: name-1, name-2, ..."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{index + 1}") for index in range(count)]


def check_targets(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse early what could not be written in the end, before a model is loaded for it."""
    if len(set(paths)) < len(paths):
        raise InputError(
            f"Two results would go into the same file ({', '.join(map(str, paths))}). Each needs a name of "
            f"its own."
        )
    for path in paths:
        folder = path.parent
        if path.is_dir():
            raise InputError(f"{path} is a folder. A file's name is needed; give {path / 'result.png'}, say.")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            state = "may not be written to" if folder.is_dir() else "is not there"
            raise InputError(
                f"{path} cannot be written: the folder {folder} {state}. Make it, or choose another place."
            )
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already. Give --overwrite to replace it, or another name.")


def check_animation_name(path: Path | None) -> None:
    """Refuse a name that is not that of an animation; no name is fine."""
    if path is not None and path.suffix.lower() not in (".gif", ".webp"):
        raise InputError(
            f"{path.name!r} has no ending that names an animation. Give a name in .gif or .webp."
        )


def check_quality(path: Path, quality: int | None) -> None:
    """Refuse a quality for a file that keeps all of a picture."""
    if quality is not None and path.suffix.lower() not in (".jpg", ".jpeg", ".webp", ".avif"):
        raise InputError(
            f"--quality {quality} was given for {path.name!r}. It is for .jpg, .webp and .avif. Leave it "
            f"out, or choose one of these endings."
        )


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """A file beside the target to write to; it takes the target's place when all went well."""
    try:
        descriptor, name = tempfile.mkstemp(
            suffix=target.suffix, prefix=f".{target.stem}-", dir=target.parent
        )
    except OSError as error:
        raise _unwritable(target, error) from error
    temporary = Path(name)
    try:
        os.close(descriptor)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's is for its owner alone
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"{target} cannot be written ({error.strerror or error}). A folder that exists, may be written to "
        f"and has room is needed; nothing was left there. Choose another place."
    )
