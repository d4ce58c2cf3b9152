"""Files that commands write: none is replaced without --overwrite, and none is left half-written."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from retouch.errors import InputError


def default_name(photo: str, verb: str, suffix: str = ".png") -> Path:
    """Return `<photo>-<verb>.png` in the working folder, or the first free name with a number."""
    stem = Path(photo.split("?")[0]).stem or "photo"
    if photo.startswith("data:"):
        stem = "photo"
    plain = Path(f"{stem}-{verb}{suffix}")
    numbered = (plain.with_stem(f"{plain.stem}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([plain], numbered) if not path.exists())


def series(path: Path, count: int) -> list[Path]:
    """Return the files of several variations: name-1, name-2, ..."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{index + 1}") for index in range(count)]


def check_targets(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse targets that cannot be written, before a model is loaded."""
    if len(set(paths)) < len(paths):
        raise InputError(
            f"Two results would go into the same file ({', '.join(map(str, paths))}). Give each its own name."
        )
    for path in paths:
        folder = path.parent
        if path.is_dir():
            raise InputError(f"{path} is a folder. Give the name of a file, such as {path / 'result.png'}.")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            state = "may not be written to" if folder.is_dir() else "is not there"
            raise InputError(
                f"{path} cannot be written: the folder {folder} {state}. Create it, or choose another."
            )
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already. Give --overwrite to replace it, or another name.")


def check_animation_name(path: Path | None) -> None:
    """Refuse a name whose ending is not that of an animation; None passes."""
    if path is not None and path.suffix.lower() not in (".gif", ".webp"):
        raise InputError(
            f"{path.name!r} has no ending that names an animation. Give a name in .gif or .webp.",
            parameter="gif",
        )


def check_quality(path: Path, quality: int | None) -> None:
    """Refuse a quality for a file whose format is lossless."""
    if quality is not None and path.suffix.lower() not in (".jpg", ".jpeg", ".webp", ".avif"):
        raise InputError(
            f"quality={quality} was given for {path.name!r}. It is for .jpg, .webp and .avif. Leave it "
            "out, or choose one of these endings.",
            parameter="quality",
        )


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """Yield a file beside the target to write to; it replaces the target if there was no error."""
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
        temporary.chmod(0o666 & ~mask)  # mkstemp lets only the owner read
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(
        f"{target} cannot be written ({error.strerror or error}). The folder must exist, be writable and "
        f"have room; no partial file was left. Choose another place."
    )
