"""The mixin that gives a model `from_pretrained` and `save_pretrained`.

It connects a config class, a checkpoint's files and a module, and names no model itself. A loaded model is
complete: every tensor came from the file, or there is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from retouch.checkpoints.config import Config, read_config
from retouch.checkpoints.ignored import is_ignored
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.original_kinds import KINDS
from retouch.checkpoints.original_layout import OURS, PART_OF
from retouch.checkpoints.single_file import SingleFile, names_single_file
from retouch.checkpoints.tensors import choose_weights, part_paths, read_tensors, write_tensors
from retouch.devices import resolve_device, resolve_dtype
from retouch.errors import CheckpointError, InputError, errors_about

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"

# The release of diffusers whose file layout we write; its readers need the key.
_DIFFUSERS_VERSION = "0.42.0"

# The options that find a file, without those that choose among files.
_LOCATION = ("cache_dir", "token", "local_files_only", "force_download")


class Pretrained:
    """Loading and saving for an `nn.Module` whose constructor takes the settings of `config_class`."""

    config_class: ClassVar[type[Config]]
    config: Config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a model with this config and fresh weights."""
        return cls(**{key: value for key, value in config.items() if not key.startswith("_")})

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        use_safetensors: bool | None = None,
        force_download: bool = False,
        **others: Any,
    ) -> Self:
        """Load the model of a local folder, a hub repository or one file, in evaluation mode.

        `torch_dtype` is the older name of `dtype`. Without both, the weights become float32, for files of
        every dtype. Options of the reference that have no effect here, such as `low_cpu_mem_usage`, are
        ignored.
        """
        cls._known(others)
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise InputError(
                f"dtype={dtype} and torch_dtype={torch_dtype} contradict each other. They are two names of "
                f"one setting; pass dtype alone.",
                parameter="torch_dtype",
            )
        target = resolve_device(device)
        wanted = resolve_dtype(dtype if dtype is not None else torch_dtype, target)
        location: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "use_safetensors": use_safetensors,
        }
        if names_single_file(name):
            if subfolder or variant:
                raise InputError(
                    f"{name} is one file, and subfolder={subfolder!r} and variant={variant!r} choose among "
                    f"the files of a folder. Leave them out.",
                    parameter="subfolder" if subfolder else "variant",
                )
            return cls.from_single_file(name, dtype=wanted, device=target, **location)
        checkpoint = Checkpoint.open(name, variant=variant, **location)
        part = checkpoint.home_of(subfolder) if subfolder else None
        folder = checkpoint.fetch([part])
        if part:
            folder = folder / part
        return cls._from_folder(
            folder, variant=variant, dtype=wanted, device=target, use_safetensors=use_safetensors
        )

    @classmethod
    def _known(cls, options: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
        """Return the known options, and refuse the others unless they are ignored."""
        refused = [key for key, value in options.items() if key not in known and not is_ignored(key, value)]
        if refused:
            advice = " A device is chosen by device=." if "device_map" in refused else ""
            raise InputError(
                f"{cls.__name__} cannot be loaded with {', '.join(refused)}. The options of the help text "
                f"are accepted. Leave it out.{advice}",
                parameter=refused[0],
            )
        return {key: value for key, value in options.items() if key in known}

    @classmethod
    def _from_folder(
        cls,
        folder: Path,
        *,
        variant: str | None,
        dtype: torch.dtype | None,
        device: torch.device,
        use_safetensors: bool | None,
    ) -> Self:
        settings = read_config(folder / CONFIG_NAME)
        kind = settings.get("_class_name")
        if kind is not None and kind not in {parent.__name__ for parent in cls.__mro__}:
            raise CheckpointError(
                f"{folder} holds a model of the class {kind}, which {cls.__name__} cannot load. Use the "
                f"class {kind}, or pass the subfolder of the {cls.__name__}.",
                parameter="subfolder",
            )
        # Made here and once more by the model, so that an error names the file.
        config = cls.config_class.from_dict(settings, source=str(folder / CONFIG_NAME))
        files = choose_weights(
            os.listdir(folder), str(folder), variant=variant, use_safetensors=use_safetensors
        )
        paths = part_paths(folder, files)
        with torch.device("meta"):
            model = cls.from_config(config)
        # float32 instead of the file's dtype, so that the dtype of a model does not depend on the variant
        # that was found. The reference does the same.
        state: dict[str, Tensor] = {}
        for path in paths:
            state.update(read_tensors(path, dtype=dtype or torch.float32, device=device))
        source = paths[0] if files.index is None else folder / files.index
        _assign(cast(nn.Module, model), cls.legacy_keys(state), source)
        return model

    @classmethod
    def from_single_file(
        cls,
        name: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> Self:
        """Load the model from one file that has it alone, or from an original checkpoint.

        The tensors tell its settings. If they do not, `config` names the kind ("sd15", "sdxl", ...), or a
        folder or repository with a config.json in `subfolder`. Other options: `cache_dir`, `token`,
        `local_files_only`, `force_download`, and those that `from_pretrained` ignores.
        """
        location = cls._known(others, _LOCATION)
        target = resolve_device(device)
        wanted = resolve_dtype(dtype if dtype is not None else torch_dtype, target)
        file = SingleFile.open(name, use_safetensors=use_safetensors, revision=revision, **location)
        part = cls._part()
        if config is None:
            settings = file.settings_of(part)
        elif config in KINDS:
            settings = KINDS[config].settings_of(part)
        else:
            with errors_about("config"):
                folder = Checkpoint.open(config, **location).fetch([subfolder], weights=False)
                settings = read_config(folder / (subfolder or "") / CONFIG_NAME)
        load = cls.loader(file, settings, dtype=wanted, device=target)
        found = file.prefix_of(part)
        if found is not None:
            file.refuse_leftovers(below=found[0])
        return load()

    @classmethod
    def loader(
        cls,
        file: SingleFile,
        settings: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Callable[[], Any]:
        """Check that the file has this model, and return a function that loads it."""
        part = cls._part()
        model_config = cls.config_class.from_dict(settings, source=f"the settings for {file.path}")
        with torch.device("meta"):
            model = cast(nn.Module, cls.from_config(model_config))
        has_our_names = file.prefix_of(part) is None and OURS[part] in file.shapes
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        read = file.read_all if has_our_names else file.claim(part, model_config, shapes).read

        def load() -> Any:
            state = read(dtype or torch.float32, device)
            _assign(model, cls.legacy_keys(state) if has_our_names else state, file.path)
            return model

        return load

    @classmethod
    def _part(cls) -> str:
        """Return the name that this model has as a part of an original checkpoint."""
        for base in cls.__mro__:
            if base.__name__ in PART_OF:
                return PART_OF[base.__name__]
        raise InputError(
            f"{cls.__name__} has no original layout. {', '.join(PART_OF)} are read from single files. Load "
            f"this model from a folder or repository with its config.json.",
            parameter="name",
        )

    @classmethod
    def legacy_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors under this model's names; override it to rename older ones."""
        return state

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write config.json and the weights, in shards if they are larger than `max_shard_size`."""
        config = {
            "_class_name": type(self).__name__,
            "_diffusers_version": _DIFFUSERS_VERSION,
            **self.config.to_dict(),
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_tensors(
            cast(nn.Module, self).state_dict(),
            Path(folder),
            variant=variant,
            max_shard_size=max_shard_size,
            texts={CONFIG_NAME: text},
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating-point weights."""
        parameters = cast(nn.Module, self).parameters()
        return next((p.dtype for p in parameters if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next((p.device for p in cast(nn.Module, self).parameters()), torch.device("cpu"))


def _assign(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Give the tensors to a model on the meta device; an error names those that do not fit."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{source} does not hold the weights of this {type(model).__name__}: of {len(expected)} tensors, "
            f"{'; '.join(faults)}. Names and shapes must match config.json; use the config that belongs to "
            f"these weights, or the class that they were saved from.",
            parameter="name",
        )
    model.load_state_dict(state, strict=True, assign=True)
    model.eval()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    unsaved = [name for name, tensor in tensors if tensor.is_meta]
    if unsaved:
        raise CheckpointError(
            f"{type(model).__name__} has tensors that no file holds: {', '.join(unsaved[:3])}. A model can "
            f"be loaded only if all of them are saved; compute such a buffer in forward instead."
        )
