"""Pipelines as files: loading from a folder, the hub or a single file, fetching alone, and saving.

It finds out which parts there are and where; how one of them is read and written is in components.py, and
single files are single_file.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.single_file import names_single_file
from retouch.devices import available_devices, resolve_dtype
from retouch.errors import InputError
from retouch.pipelines.bundle import Bundle
from retouch.pipelines.components import load_component, save_component, subfolders
from retouch.pipelines.single_file import load_parts, open_single_file, require_family

if TYPE_CHECKING:
    from typing_extensions import Self

PartNames = dict[str, tuple[str, str]]  # what a pipeline calls a part: its name in a checkpoint, its class


class StoredBundle(Bundle):
    """A bundle that comes from files and is written to them."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
        optimize: bool = True,
        **components: Any,
    ) -> Self:
        """A pipeline from a local folder or a hub repository, or from one file as `from_single_file` does.

        Further keywords replace a part (`unet=...`, `scheduler=...`) or leave an optional one out (None).
        The safety checker is loaded only with `safety_checker=True`. float16 on a machine whose devices do
        not compute it well becomes bfloat16 or float32, with a warning. `optimize=False` leaves out
        what `optimize()` does.
        """
        location: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "use_safetensors": use_safetensors,
        }
        wanted = dtype if dtype is not None else torch_dtype
        if names_single_file(name):
            if variant is not None:
                raise InputError(
                    f"{name} is one file, and variant={variant!r} chooses among the files of a folder. Leave "
                    f"it out."
                )
            return cls.from_single_file(name, dtype=wanted, optimize=optimize, **location, **components)
        checkpoint = Checkpoint.open(name, variant=variant, **location)
        pipeline = cls._from_checkpoint(checkpoint, wanted, use_safetensors is False, components)
        return pipeline.optimize(optimize)

    @classmethod
    def _from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype | str | None,
        pickled: bool,
        components: Mapping[str, Any],
    ) -> Self:
        given = cls._component_arguments(components)
        wanted = resolve_dtype(dtype, available_devices()[0])
        index = checkpoint.index()
        given = {name: index[name] for name in cls.switches if name in index} | given
        parts = dict(given)
        found = cls._fetched(checkpoint, index, given)
        for part, source, folder, name, class_name in tqdm(
            found, desc="Loading", unit="part", disable=None, leave=False
        ):
            variant = source.variant_in(name)
            parts[part] = load_component(
                folder, name, class_name, variant=variant, dtype=wanted, pickled=pickled
            )
        pipeline = cls(**parts)
        pipeline._source = checkpoint.name
        return pipeline

    @classmethod
    def download(cls, name: str | os.PathLike[str], **location: Any) -> list[Path]:
        """Fetch all that `from_pretrained` needs, and load none of it; the folders that it is in.

        `location`: the keywords of `from_pretrained` that say where from and which files.
        """
        checkpoint = Checkpoint.open(name, **location)
        found = cls._fetched(checkpoint, checkpoint.index(), cls._component_arguments({}))
        return list(dict.fromkeys(folder for _, _, folder, *_ in found))

    @classmethod
    def _fetched(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[str, Checkpoint, Path, str, str]]:
        """Of each part that is not given: its name, and where it is, on this machine now."""
        found = []
        for source, names in cls._sources(checkpoint, index, given):
            homes = {part: (source.home_of(name), kind) for part, (name, kind) in names.items()}
            extra = {} if source is not checkpoint else cls.unlisted_components
            extra = {part: kind for part, kind in extra.items() if part not in given}
            # With a star none need be there.
            folder = source.fetch([*subfolders(dict(homes.values())), *(f"{part}*" for part in extra)])
            homes |= {part: (part, kind) for part, kind in extra.items() if (folder / part).is_dir()}
            found += [(part, source, folder, *entry) for part, entry in homes.items()]
        return found

    @classmethod
    def _sources(
        cls, checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
    ) -> list[tuple[Checkpoint, PartNames]]:
        """Which checkpoints the parts that are not given come from."""
        return [(checkpoint, cls._named(index, given))]

    @classmethod
    def _named(
        cls, index: Mapping[str, Any], given: Collection[str], rename: Callable[[str], str] = str
    ) -> PartNames:
        """The parts that an index names; `rename` tells what this pipeline calls one of them."""
        return {
            rename(name): (name, entry[1])
            for name, entry in index.items()
            if rename(name) in cls.component_names
            and rename(name) not in given
            and isinstance(entry, list)
            and entry[1]
        }

    @classmethod
    def from_single_file(
        cls,
        name: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        prediction_type: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
        optimize: bool = True,
        **components: Any,
    ) -> Self:
        """A pipeline from one file in the layout of the original Stable Diffusion programs.

        `name` is a path, 'org/name/file.safetensors' or the file's address on the hub. What kind of
        checkpoint it is shows in its tensors; `config` names the kind ("sd15", "sdxl", ...), or a folder or
        repository with settings for another architecture. `prediction_type` is found out too, unless it is
        given. Pickled files (.ckpt) are read only with `use_safetensors=False`. Further keywords are as for
        `from_pretrained`.
        """
        given = cls._component_arguments(components)
        if components.get("safety_checker") is True:
            raise InputError(
                "safety_checker=True asks for the one in the checkpoint, and a single file has none. Pass "
                "the safety checker of another pipeline, with its feature_extractor."
            )
        file, kind = open_single_file(
            name,
            config,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            use_safetensors=use_safetensors,
        )
        require_family(file, kind, cls)
        switches = {key: value for key, value in kind.switches.items() if key in cls.switches}
        parts = load_parts(
            file,
            kind,
            given,
            dtype=resolve_dtype(dtype if dtype is not None else torch_dtype, available_devices()[0]),
            prediction_type=prediction_type,
        )
        pipeline = cls(**{**switches, **parts})
        pipeline._source = file.name
        return pipeline.optimize(optimize)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write a folder that this library and diffusers load. Nothing half-written is left on failure."""
        if not safe_serialization:
            raise InputError(
                "safe_serialization=False asks for pickled weights. Only safetensors are written, which "
                "every reader of this layout knows; leave it out."
            )
        target = Path(folder).absolute()
        if target.is_file():
            raise InputError(f"{target} is a file; save_pretrained needs a folder's path.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            staged = Path(temporary)
            for name, part in self.all_components.items():
                if part is not None:
                    save_component(part, staged / name, variant, max_shard_size)
            # Of the switches only those that are set: not each front of the reference knows them all.
            defaults = self.switches.items()
            index = {key: value for key, value in self.config.items() if (key, value) not in defaults}
            (staged / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            for source in sorted(path for path in staged.rglob("*") if path.is_file()):
                place = target / source.relative_to(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, place)
