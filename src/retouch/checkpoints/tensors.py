"""Weights on disk: which files of a folder hold them, how they are read and written.

Safetensors, whole or in shards, in any variant; pickled files only for a caller who asks for them by
name. This file knows nothing of models or of the hub: it turns files into named tensors and back.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retouch.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# diffusers' name, then the two of transformers.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

# Files that were pickled, by their suffix.
PICKLED = (".bin", ".ckpt", ".pt", ".pth")

# Older tools put the variant behind the shard's number, and before ".index" in the index's name.
_PART = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>\w+))?"
    r"(?P<shard>-\d{5}-of-\d{5})?(\.(?P<late_variant>\w+))?\.(?P<kind>safetensors|bin)"
)
_INDEX = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)\.(?P<kind>safetensors|bin)"
    r"(\.(?P<late_variant>\w+))?\.index(\.(?P<variant>\w+))?\.json"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files of one folder that together hold one model's weights."""

    variant: str | None
    index: str | None
    parts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts if self.index is None else (self.index, *self.parts)

    @property
    def is_pickled(self) -> bool:
        return self.parts[0].endswith(".bin")


def find_weights(names: Collection[str], *, pickled: bool = False) -> list[WeightFiles]:
    """All sets of weights among a folder's file names, the ones to prefer first; one kind of file only."""
    kind = "bin" if pickled else "safetensors"
    whole: dict[tuple[str, str | None], str] = {}
    shards: dict[tuple[str, str | None], list[str]] = {}
    indexes: dict[tuple[str, str | None], str] = {}
    for name in sorted(names):
        if (match := _PART.fullmatch(name)) and match["kind"] == kind:
            key = match["stem"], match["variant"] or match["late_variant"]
            if match["shard"]:
                shards.setdefault(key, []).append(name)
            else:
                whole[key] = name
        elif (match := _INDEX.fullmatch(name)) and match["kind"] == kind:
            indexes[match["stem"], match["variant"] or match["late_variant"]] = name

    found = []
    keys = {*whole, *(indexes.keys() & shards)}
    for key in sorted(keys, key=lambda key: (STEMS.index(key[0]), key[1] or "")):
        if key in whole:
            found.append(WeightFiles(key[1], None, (whole[key],)))
        else:
            found.append(WeightFiles(key[1], indexes[key], _whole_series(shards[key])))
    return found


def _whole_series(names: Collection[str]) -> tuple[str, ...]:
    """All shards of the series that these belong to: their names tell how many there are."""
    series = set()
    for name in names:
        before, count, after = re.split(r"-\d{5}-of-(\d{5})", name)
        series |= {f"{before}-{number:05}-of-{count}{after}" for number in range(1, int(count) + 1)}
    return tuple(sorted(series))


def choose_weights(
    names: Collection[str], where: str, *, variant: str | None = None, use_safetensors: bool | None = None
) -> WeightFiles:
    """The weights to load from a folder with these files; `where` names the folder in an error.

    Safetensors alone are considered, unless `use_safetensors` is False: then pickled files come first.
    """
    safe, pickled = find_weights(names), find_weights(names, pickled=True)
    usable = [*pickled, *safe] if use_safetensors is False else safe
    for files in usable:
        if files.variant == variant:
            return files

    if usable:
        others = ", ".join(sorted({repr(files.variant) if files.variant else "none" for files in usable}))
        asked = f"variant={variant!r}" if variant else "weights without a variant"
        raise CheckpointError(
            f"{where} holds no {asked}. Variants that are there: {others}. Pass variant= with one of those.",
            parameter="variant",
        )
    if pickled:
        raise CheckpointError(
            f"{where} holds only pickled weights ({pickled[0].parts[0]}), which can run code when they are "
            f"read carelessly. Safetensors are accepted; convert the checkpoint, or pass "
            f"use_safetensors=False if you trust where it comes from.",
            parameter="use_safetensors",
        )
    raise CheckpointError(
        f"{where} holds no weights. Accepted: {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, whole or in "
        f"shards with their index. Check the path, and `subfolder` if the model is a part of a pipeline.",
        parameter="name",
    )


def part_paths(folder: Path, files: WeightFiles) -> list[Path]:
    """The files to read, checked to be there. For shards the index decides, not what lies around."""
    names: Collection[str] = files.parts
    if files.index is not None:
        index = folder / files.index
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is not an index of shards ({error}). Expected JSON with a weight_map from tensor "
                f"to file. Download or save the checkpoint again.",
                parameter="name",
            ) from error
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise CheckpointError(
                f"{index} names {sorted(names, key=str)[:3]!r} as shards. Accepted: file names in its own "
                f"folder. Download or save the checkpoint again.",
                parameter="name",
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}. All of "
            f"them are needed. Download or save the checkpoint again.",
            parameter="name",
        )
    return [folder / name for name in names]


def read_tensors(
    path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of one file, on its device already, floats as `dtype`; integers keep theirs.

    One tensor at a time is held in the file's own dtype, so the peak is the model plus one layer.
    """
    reader = _read_pickle(path) if path.suffix == ".bin" else _read_safetensors(path)
    for name, tensor in reader:
        kept = dtype if tensor.is_floating_point() else None
        yield name, tensor.to(device=device, dtype=kept, copy=True)


class TensorFile:
    """One open file: the names and shapes of its tensors at once, the values when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._read: Callable[[str], Tensor]
        if path.suffix.lower() in PICKLED:
            tensors = _tensors_in(unpickle(path))
            self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            self._read = tensors.__getitem__
        else:
            file = _Safetensors(path)
            self.metadata, self.shapes, self._read = file.metadata, file.shapes, file.read

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        with _explained(self.path):
            return self._read(name)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the safetensors library finds wrong with a file, in our words."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} {_what_it_is(path)} ({error}). A complete safetensors file is expected. "
            f"Download it again (force_download=True) or save it again.",
            parameter="name",
        ) from error


class _Safetensors:
    """A safetensors file whose tensors are copied out of it one by one.

    The library maps the file into memory. What was touched of a mapping counts as the process's memory until
    the file is closed and all tensors in it are gone, so a model in bfloat16 from a float32 file would take
    three times its size. So tensors are copied, and the file is opened anew from time to time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path):
            self._file = self._opened()
            self.metadata: dict[str, str] = self._file.metadata() or {}
            self.names: list[str] = list(self._file.keys())
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self.names}
        self._touched = 0

    def read(self, name: str) -> Tensor:
        return self.mapped(name).clone()

    def mapped(self, name: str) -> Tensor:
        """Return a tensor in the mapped file, which the caller has to copy."""
        if self._touched > _OPEN_ANEW_AFTER:
            self._file = self._opened()
            self._touched = 0
        tensor: Tensor = self._file.get_tensor(name)
        self._touched += tensor.nbytes
        return tensor

    def _opened(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")


# Bytes. Opening a file takes a few milliseconds, since its header is read again.
_OPEN_ANEW_AFTER = 64 * 2**20


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    file = _Safetensors(path)
    with _explained(path):
        for name in file.names:
            yield name, file.mapped(name)


def unpickle(path: Path) -> Any:
    """What a pickle holds. Nothing but tensors and plain containers is made; code in it does not run."""
    import torch

    try:
        # Mapped, so that a large checkpoint is not in memory twice; the older format cannot be.
        is_archive = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive or None)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} cannot be read as pickled weights ({reason:.200}). A dictionary of tensors and nothing "
            f"else is accepted; no code in it was run. Use this checkpoint's safetensors.",
            parameter="name",
        ) from error


def _tensors_in(state: Any) -> dict[str, Tensor]:
    """The tensors of a training checkpoint, which keeps them among counters, or one level below."""
    import torch

    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    state = unpickle(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} is a pickle of {type(state).__name__}. A dictionary of tensors and nothing else is "
            f"accepted. Use the safetensors of this checkpoint.",
            parameter="name",
        )
    yield from state.items()


def _what_it_is(path: Path) -> str:
    """A guess at what a file is that should have been safetensors, for the error."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return "cannot be opened"
    if size == 0:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights themselves: run `git lfs pull`"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "is a pickled file under another name"
    if head.lstrip().startswith((b"<", b"{")):
        return "is a text file, perhaps an error page that was saved"
    if len(head) >= 9 and head[8:9] == b"{":
        return f"is cut short or damaged: it has {size} bytes"
    return "is no safetensors file"


def write_tensors(
    state: Mapping[str, Tensor],
    folder: Path,
    *,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    texts: Mapping[str, str],
) -> None:
    """Save `state` beside `texts` (by file name), so that each file appears complete or not at all.

    Weights of the same variant from an earlier save are removed: an old index beside a new file
    would make a reader take the old one.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    if variant is not None and not re.fullmatch(r"\w+", variant):
        raise InputError(
            f"variant={variant!r} cannot be part of a file name. Use letters, digits and _.",
            parameter="variant",
        )
    stem = STEMS[0] if variant is None else f"{STEMS[0]}.{variant}"
    plan = split_torch_state_dict_into_shards(
        dict(state), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    folder.mkdir(parents=True, exist_ok=True)
    before = [files for files in find_weights(os.listdir(folder)) if files.variant == variant]
    stale = {name for files in before for name in files.names if name.startswith(STEMS[0])}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
        for name, keys in plan.filename_to_tensors.items():
            part = {key: state[key].detach().contiguous() for key in keys}
            save_file(part, Path(scratch, name), metadata={"format": "pt"})
        texts = dict(texts)
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            suffix = "" if variant is None else f".{variant}"
            texts[f"{STEMS[0]}.safetensors.index{suffix}.json"] = json.dumps(index, indent=2) + "\n"
        for name, text in texts.items():
            Path(scratch, name).write_text(text, encoding="utf-8")
        written = os.listdir(scratch)
        for name in written:
            # safetensors makes its files readable by their owner alone.
            shutil.copymode(Path(scratch, next(iter(texts))), Path(scratch, name))
        for name in written:
            os.replace(Path(scratch, name), folder / name)
    for name in stale.difference(written):
        (folder / name).unlink(missing_ok=True)
