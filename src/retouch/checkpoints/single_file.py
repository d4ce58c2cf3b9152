"""One file with a whole checkpoint, or with one model of it, in the layout of the original programs.

This finds the file, recognises the kind of checkpoint from the tensors, and gives each model its tensors
under our names. Names and shapes are checked before any value is read, and every tensor must have a place. It
builds no model.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from retouch.checkpoints.config import read_config
from retouch.checkpoints.contents import describe
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.original_kinds import KINDS, Kind
from retouch.checkpoints.original_layout import BARE, OURS, PLACES, Origin, origins
from retouch.checkpoints.tensors import PICKLED, TensorFile
from retouch.errors import CheckpointError, InputError, errors_about

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SUFFIXES = (".safetensors", ".sft", *PICKLED)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)/(?:blob|resolve)/"
    r"(?P<revision>[^/]+)/(?P<path>[^?#]+)"
)

# Training leaves these in a file; they belong to no model.
_LEFTOVERS = re.compile(
    r"model_ema\..*"
    r"|betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|logvar|lvlb_weights|scale_factor|denoiser\.sigmas|global_step"
    r"|(first_stage_model\.)?(loss|model_ema)\..*"
    r"|.*\.embeddings\.position_ids"
    # Rests of CLIP's comparison of texts and pictures, which a text encoder does not use.
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.((model|transformer)\.)?"
    r"(logit_scale|attn_mask|text_projection(\.weight)?)"
)
# Empty tensors that state how a checkpoint was trained.
_MARKS: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}

_OTHER_CHANNELS = {5: "depth-guided", 7: "an upscaler", 8: "InstructPix2Pix"}


def names_single_file(name: str | os.PathLike[str]) -> bool:
    """Return whether this names one file, not a folder or a repository."""
    text = os.fspath(name)
    return _ends(text, _SUFFIXES) and not Path(text).expanduser().is_dir()


@dataclass(frozen=True)
class Claim:
    """The tensors that one model takes from a file, after a check of their names and shapes."""

    file: TensorFile
    origins: Mapping[str, Origin]

    def read(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Read the tensors under our names. Only one at a time is held in the file's dtype."""
        state = {}
        for name, origin in self.origins.items():
            tensor = self.file.read(origin.name)
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{self.file.path} holds {origin.name} as {tensor.dtype}. Floating-point weights are "
                    f"accepted, quantised ones are not supported. Use this checkpoint in float32, bfloat16 "
                    f"or float16.",
                    parameter="name",
                )
            state[name] = origin.read(tensor).to(device=device, dtype=dtype)
        return state


class SingleFile:
    """An open file. Models claim their tensors; unclaimed ones are an error at the end."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._file = TensorFile(path)
        self.shapes = self._file.shapes
        self._claimed: set[str] = set()

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        use_safetensors: bool | None = None,
    ) -> SingleFile:
        """Open a local file, or one of the hub by 'org/name/file.safetensors' or the address of its page."""
        text = os.fspath(name)
        if not names_single_file(text):
            raise CheckpointError(
                f"{text} does not name a file of weights. Accepted: a path, 'org/name/file.safetensors' or "
                f"the file's address on the hub, ending in {', '.join(_SUFFIXES)}. For a folder or a "
                f"repository use from_pretrained.",
                parameter="name",
            )
        path = Path(text).expanduser()
        if _ends(text, PICKLED) and use_safetensors is not False:
            raise CheckpointError(
                f"{text} is a pickled checkpoint, which can run code when it is read carelessly. "
                f"Safetensors are accepted; use the checkpoint's safetensors file, or pass "
                f"use_safetensors=False to read only tensors from this one.",
                parameter="use_safetensors",
            )
        if not path.is_file():
            path = _download(
                text,
                is_path=not isinstance(name, str),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        return cls(text, path)

    def prefix_of(self, part: str) -> tuple[str, str] | None:
        """Return the prefix of a part's tensors and the rule for their names; None if the part is missing."""
        for prefix, rule in PLACES[part]:
            if any(name.startswith(prefix) for name in self.shapes):
                return prefix, rule
        return ("", PLACES[part][0][1]) if BARE.get(part) in self.shapes else None

    def kind(self) -> str:
        """Return the checkpoint's name in KINDS, recognised by the UNet's shapes."""
        first = (self.prefix_of("unet") or ("", ""))[0] + BARE["unet"]
        if first not in self.shapes and OURS["unet"] not in self.shapes:
            noun, advice = describe(self.shapes)
            raise CheckpointError(
                f"{self.path} is {noun}. A checkpoint with a UNet is expected: Stable Diffusion 1.x, 2.x or "
                f"XL in the original layout, with tensors below model.diffusion_model. {advice}.",
                parameter="name",
            )
        return self._kind_of("unet")

    def _kind_of(self, part: str) -> str:
        """Return the kind of a UNet, or of the UNet that a ControlNet was copied from."""
        prefix = (self.prefix_of(part) or ("", ""))[0]
        shapes = {
            name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)
        }
        first = shapes.get("input_blocks.0.0.weight") or shapes.get("conv_in.weight") or ()
        readers = [shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")]
        channels, width = (*first, 0, 0)[1], (readers or [0])[0]
        kinds_by_shape = _kinds_by_shape()
        kinds = kinds_by_shape.get(width, {})
        if channels in kinds:
            return kinds[channels]
        if kinds:
            other = f" ({_OTHER_CHANNELS[channels]})" if channels in _OTHER_CHANNELS else ""
            fact, accepted = f"takes {channels} input channels{other}", " or ".join(map(str, kinds))
        else:
            fact, accepted = f"reads text of width {width}", ", ".join(map(str, kinds_by_shape))
        raise CheckpointError(
            f"{self.path} holds a {part} that {fact}. Accepted: {accepted}. Use one of Stable Diffusion 1.x, "
            f"2.x or XL, or made from those; for another architecture of that layout pass config= with a "
            f"folder of its settings.",
            parameter="name",
        )

    def settings_of(self, part: str) -> dict[str, Any]:
        """Return the config of one model in the file."""
        if part == "vae" and self.prefix_of("unet") is None:
            warnings.warn(
                f"{self.name} is a VAE alone, and does not state its kind of checkpoint. It is loaded as "
                f"one of Stable Diffusion 1.x or 2.x. Pass config='sdxl' for one of XL, whose latents have "
                f"another scale, or config='sd15' to avoid this warning.",
                stacklevel=3,
            )
            return KINDS["sd15"].settings_of(part)
        return KINDS[self._kind_of(part) if part == "controlnet" else self.kind()].settings_of(part)

    def stated_schedule(self) -> dict[str, Any]:
        """Return the scheduler settings that the file states."""
        stated: dict[str, Any] = {}
        if self._file.metadata.get("modelspec.prediction_type") in ("v", "epsilon"):
            is_v = self._file.metadata["modelspec.prediction_type"] == "v"
            stated["prediction_type"] = "v_prediction" if is_v else "epsilon"
        for mark, settings in _MARKS.items():
            if mark in self.shapes:
                stated |= settings
        return stated

    def claim(self, part: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Claim:
        """Claim the tensors of a model with this config, whose tensors have these shapes."""
        import torch

        found = self.prefix_of(part)
        if found is None:
            noun, advice = describe(self.shapes)
            below = " or ".join(prefix.rstrip(".") for prefix, _ in PLACES[part])
            raise CheckpointError(
                f"{self.path} is {noun}, and holds no {part}. Tensors below {below} are expected. {advice}.",
                parameter="name",
            )
        prefix, rule = found
        sources = origins(rule, config, shapes)
        if rule == "CLIP" and not any(name.startswith(f"{prefix}text_model.") for name in self.shapes):
            sources = {
                name: replace(source, name=source.name.removeprefix("text_model."))
                for name, source in sources.items()
            }
        sources = {name: replace(source, name=prefix + source.name) for name, source in sources.items()}
        wanted = list(dict.fromkeys(source.name for source in sources.values()))
        missing = [name for name in wanted if name not in self.shapes]
        misshapen = {
            source.name: self.shapes[source.name]
            for name, source in sources.items()
            if source.name in self.shapes
            and source.read(torch.empty(self.shapes[source.name], device="meta")).shape != shapes[name]
        }
        if missing or misshapen:
            faults = []
            if missing:
                faults.append(f"{len(missing)} are missing ({_first(missing)})")
            if misshapen:
                odd = [f"{name} {shape}" for name, shape in misshapen.items()]
                faults.append(f"{len(misshapen)} have another shape ({_first(odd)})")
            raise CheckpointError(
                f"{self.path} does not hold the {part} that was expected: of its {len(wanted)} tensors "
                f"{' and '.join(faults)}. A complete {part} of this kind is accepted. Download the file "
                f"again if it is damaged; a pruned or changed architecture needs config= with a folder of "
                f"its settings.",
                parameter="name",
            )
        self._claimed.update(wanted)
        if rule == "OpenCLIP":  # files of SD 2.x have a last layer that it does not use
            last = f"{prefix}transformer.resblocks.{config['num_hidden_layers']}."
            self._claimed.update(name for name in self.shapes if name.startswith(last))
        return Claim(self._file, sources)

    def read_all(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Read every tensor under its name in the file."""
        return Claim(self._file, {name: Origin(name) for name in self.shapes}).read(dtype, device)

    def leave(self, part: str) -> None:
        """Ignore the file's tensors of a part, which the caller gives instead."""
        prefixes = tuple(prefix for prefix, _ in PLACES.get(part, ()))
        self._claimed.update(name for name in self.shapes if prefixes and name.startswith(prefixes))

    def refuse_leftovers(self, below: str = "") -> None:
        """Refuse the file if a tensor has no place: without some weights a model draws other pictures."""
        unclaimed = [
            name
            for name in self.shapes
            if name.startswith(below)
            and name not in self._claimed
            and name not in _MARKS
            and not _LEFTOVERS.fullmatch(name)
        ]
        if not unclaimed:
            return
        noun, advice = describe(unclaimed)
        raise CheckpointError(
            f"{self.path} holds {len(unclaimed)} tensors that have no place in the model "
            f"({_first(unclaimed)}); they look like {noun}. All tensors of a checkpoint must be used. "
            f"{advice}; if they are left from training, remove them.",
            parameter="name",
        )


def _kinds_by_shape() -> dict[int, dict[int, str]]:
    """Return the width of the text states that a UNet reads -> its input channels -> the first such kind."""
    table: dict[int, dict[int, str]] = {}
    for name, kind in KINDS.items():
        settings = kind.settings_of("unet")
        width, channels = int(settings["cross_attention_dim"]), int(settings["in_channels"])
        table.setdefault(width, {}).setdefault(channels, name)
    return table


def settings_from(
    config: str | os.PathLike[str], identify: Callable[[Any], tuple[str, str]], **options: Any
) -> Kind:
    """Return the kind of a name in KINDS, or one read from a pipeline's folder or repository.

    `identify` returns the family and the task of a pipeline class by the name that model_index.json has.
    """
    if isinstance(config, str) and config in KINDS:
        return replace(KINDS[config], twin=None)
    with errors_about("config"):
        checkpoint = Checkpoint.open(config, **options)
        index = checkpoint.index()
        classes = {
            part: entry[1]
            for part, entry in index.items()
            if isinstance(entry, list) and entry[1] and (part in PLACES or _is_read_from_folder(entry[1]))
        }
        folder = checkpoint.fetch(classes, weights=False)
        parts = {}
        for part, class_name in classes.items():
            name = "scheduler_config.json" if class_name.endswith("Scheduler") else "config.json"
            settings = {} if class_name.startswith("CLIPTokenizer") else read_config(folder / part / name)
            parts[part] = (class_name, settings)
    switches = {key: value for key, value in index.items() if not isinstance(value, list) and key[0] != "_"}
    family, task = identify(index.get("_class_name"))
    return Kind(os.fspath(config), family, task, parts, switches, folder=folder)


def _is_read_from_folder(class_name: str) -> bool:
    return class_name.endswith("Scheduler") or class_name.startswith("CLIPTokenizer")


def _download(text: str, *, is_path: bool, revision: str | None, **options: Any) -> Path:
    """Download a file of the hub, and return the path of the local copy."""
    from huggingface_hub import constants

    address = text.replace(constants.ENDPOINT, "https://huggingface.co", 1)
    if match := _ADDRESS.fullmatch(address.split("?")[0]):
        repository, named, path = (unquote(match[key]) for key in ("repository", "revision", "path"))
        if revision not in (None, named):
            raise InputError(
                f"{text} names the revision {named!r}, and revision={revision!r} another. Pass one of them.",
                parameter="revision",
            )
        revision = named
    elif "://" in text:
        raise CheckpointError(
            f"{text} is an address outside the hub. A path, 'org/name/file.safetensors' or a file's address "
            f"on the hub is accepted. Download the file and pass its path.",
            parameter="name",
        )
    else:
        parts = text.split("/")
        if is_path or len(parts) < 3 or "\\" in text or parts[0] in ("", ".", "..", "~"):
            raise CheckpointError(
                f"{text} is not there. A path, 'org/name/file.safetensors' or a file's address on the hub "
                f"is accepted. Check the path; relative ones start at {Path.cwd()}.",
                parameter="name",
            )
        repository, path = "/".join(parts[:2]), "/".join(parts[2:])
    folder, _, wanted = path.rpartition("/")

    def choose(names: Sequence[str]) -> str:
        if wanted not in names:
            others = sorted(name for name in names if names_single_file(name))
            raise CheckpointError(
                f"{repository} has no file {path}. Files with weights in that folder: "
                f"{_first(others) or 'none'}. Check the name and the folder",
                parameter="name",
            )
        return wanted

    try:
        return Checkpoint.open(repository, revision=revision, **options).choose_file(folder, choose)
    except CheckpointError as error:
        raise type(error)(
            f"{text} is not a file on this machine (relative paths start at {Path.cwd()}), and the hub does "
            f"not provide it: {error}",
            parameter="name",
        ) from error


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a name has one of the endings; the query of an address does not count."""
    return name.split("?")[0].lower().endswith(suffixes)


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
