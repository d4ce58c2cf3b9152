"""One file with a whole checkpoint, or one model of it, as the original programs wrote them.

It finds the file, tells from the tensors which kind of checkpoint it is, and gives each model its tensors
under our names. What a file holds is checked by names and shapes before any value is read, and every tensor
must have a place. It builds no model.
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
from retouch.checkpoints.contents import what_it_is
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.original_kinds import KINDS, Kind
from retouch.checkpoints.original_layout import BARE, OURS, PLACES, Origin, origins
from retouch.checkpoints.tensors import PICKLED, TensorFile
from retouch.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SUFFIXES = (".safetensors", ".sft", *PICKLED)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)/(?:blob|resolve)/"
    r"(?P<revision>[^/]+)/(?P<path>[^?#]+)"
)

# Training leaves these behind; no model is made of them.
_LEFTOVERS = re.compile(
    r"model_ema\..*"
    r"|betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|logvar|lvlb_weights|scale_factor|denoiser\.sigmas|global_step"
    r"|(first_stage_model\.)?(loss|model_ema)\..*"
    r"|.*\.embeddings\.position_ids"
    # The half of CLIP that compares texts with pictures, of which a text encoder may keep a remnant.
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.((model|transformer)\.)?"
    r"(logit_scale|attn_mask|text_projection(\.weight)?)"
)
# Empty tensors by which a file says how it was trained.
_MARKS: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}

# A UNet's kind by the width of the text that it reads, then by its input channels.
_KINDS_BY_SHAPE = {
    768: {4: "sd15", 9: "sd15-inpainting"},
    1024: {4: "sd2", 9: "sd2-inpainting"},
    2048: {4: "sdxl", 9: "sdxl-inpainting"},
    1280: {4: "sdxl-refiner"},
}
_OTHER_WIDTHS = {5: "depth-guided", 7: "an upscaler", 8: "InstructPix2Pix"}


def names_single_file(name: str | os.PathLike[str]) -> bool:
    """Whether this is the name of one file rather than of a folder or a repository."""
    text = os.fspath(name)
    return _ends(text, _SUFFIXES) and not Path(text).expanduser().is_dir()


@dataclass(frozen=True)
class Claim:
    """The tensors that one model takes from a file, checked to be there in the right shapes."""

    file: TensorFile
    origins: Mapping[str, Origin]

    def read(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Them under our names. One at a time is held in the file's own dtype."""
        state = {}
        for name, origin in self.origins.items():
            tensor = self.file.read(origin.name)
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{self.file.path} holds {origin.name} as {tensor.dtype}. Floating-point weights are "
                    f"accepted, quantised ones are not supported. Use this checkpoint in float32, bfloat16 "
                    f"or float16."
                )
            state[name] = origin.read(tensor).to(device=device, dtype=dtype)
        return state


class SingleFile:
    """An open file. Models claim their tensors; what is left over at the end is an error."""

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
        """A local file, a hub file as 'org/name/file.safetensors', or the address of its page on the hub."""
        text = os.fspath(name)
        if not names_single_file(text):
            raise CheckpointError(
                f"{text} does not name a file of weights. Accepted: a path, 'org/name/file.safetensors' or "
                f"the file's address on the hub, ending in {', '.join(_SUFFIXES)}. For a folder or a "
                f"repository use from_pretrained."
            )
        path = Path(text).expanduser()
        if _ends(text, PICKLED) and use_safetensors is not False:
            raise CheckpointError(
                f"{text} is a pickled checkpoint, which can run code when it is read carelessly. Safetensors "
                f"are accepted; use that file of the checkpoint, or pass use_safetensors=False to read "
                f"tensors and nothing else from this one."
            )
        if not path.is_file():
            path = _fetched(
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
        """Where a part's tensors are and by which rule they are named; None if the file does not hold it."""
        for prefix, rule in PLACES[part]:
            if any(name.startswith(prefix) for name in self.shapes):
                return prefix, rule
        return ("", PLACES[part][0][1]) if BARE.get(part) in self.shapes else None

    def kind(self) -> str:
        """The name in KINDS of the checkpoint that this is, told from the UNet's shapes."""
        first = (self.prefix_of("unet") or ("", ""))[0] + BARE["unet"]
        if first not in self.shapes and OURS["unet"] not in self.shapes:
            noun, advice = what_it_is(self.shapes)
            raise CheckpointError(
                f"{self.path} is {noun}. A checkpoint with a UNet is expected: Stable Diffusion 1.x, 2.x or "
                f"XL in the original layout, with tensors below model.diffusion_model. {advice}."
            )
        return self._kind_of("unet")

    def _kind_of(self, part: str) -> str:
        """The kind of a UNet, or of the UNet that a ControlNet was copied from."""
        prefix = (self.prefix_of(part) or ("", ""))[0]
        shapes = {
            name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)
        }
        first = shapes.get("input_blocks.0.0.weight") or shapes.get("conv_in.weight") or ()
        readers = [shape[-1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")]
        channels, width = (*first, 0, 0)[1], (readers or [0])[0]
        kinds = _KINDS_BY_SHAPE.get(width, {})
        if channels in kinds:
            return kinds[channels]
        if kinds:
            other = f" ({_OTHER_WIDTHS[channels]})" if channels in _OTHER_WIDTHS else ""
            what, accepted = f"takes {channels} input channels{other}", " or ".join(map(str, kinds))
        else:
            what, accepted = f"reads text of width {width}", ", ".join(map(str, _KINDS_BY_SHAPE))
        raise CheckpointError(
            f"{self.path} holds a {part} that {what}. Accepted: {accepted}. Use one of Stable Diffusion 1.x, "
            f"2.x or XL, or made from those; for another architecture of that layout pass config= with a "
            f"folder of its settings."
        )

    def settings_of(self, part: str) -> dict[str, Any]:
        """The config of one model in the file."""
        if part == "vae" and self.prefix_of("unet") is None:
            warnings.warn(
                f"{self.name} is a VAE alone, and nothing in it says of which checkpoints. It is taken as "
                f"one of Stable Diffusion 1.x or 2.x. Pass config='sdxl' for one of XL, whose latents have "
                f"another scale, or config='sd15' to be rid of this message.",
                stacklevel=3,
            )
            return KINDS["sd15"].settings_of(part)
        return KINDS[self._kind_of(part) if part == "controlnet" else self.kind()].settings_of(part)

    def stated_schedule(self) -> dict[str, Any]:
        """Scheduler settings that the file itself names."""
        stated: dict[str, Any] = {}
        if self._file.metadata.get("modelspec.prediction_type") in ("v", "epsilon"):
            is_v = self._file.metadata["modelspec.prediction_type"] == "v"
            stated["prediction_type"] = "v_prediction" if is_v else "epsilon"
        for mark, settings in _MARKS.items():
            if mark in self.shapes:
                stated |= settings
        return stated

    def claim(self, part: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Claim:
        """Take the tensors of a model of this config, whose own tensors have these shapes."""
        import torch

        found = self.prefix_of(part)
        if found is None:
            noun, advice = what_it_is(self.shapes)
            below = " or ".join(prefix.rstrip(".") for prefix, _ in PLACES[part])
            raise CheckpointError(
                f"{self.path} is {noun}, and holds no {part}. Tensors below {below} are expected. {advice}."
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
                f"its settings."
            )
        self._claimed.update(wanted)
        if rule == "OpenCLIP":  # SD 2.x does without the last layer, which its files hold nevertheless
            last = f"{prefix}transformer.resblocks.{config['num_hidden_layers']}."
            self._claimed.update(name for name in self.shapes if name.startswith(last))
        return Claim(self._file, sources)

    def read_all(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Every tensor, under the name that it has in the file."""
        return Claim(self._file, {name: Origin(name) for name in self.shapes}).read(dtype, device)

    def leave(self, part: str) -> None:
        """A part that the caller brings: whatever the file holds of it is not used."""
        prefixes = tuple(prefix for prefix, _ in PLACES.get(part, ()))
        self._claimed.update(name for name in self.shapes if prefixes and name.startswith(prefixes))

    def refuse_leftovers(self, below: str = "") -> None:
        """Fail if a tensor has no place: a model that ignores a part of its weights draws other pictures."""
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
        noun, advice = what_it_is(unclaimed)
        raise CheckpointError(
            f"{self.path} holds {len(unclaimed)} tensors that have no place in the model "
            f"({_first(unclaimed)}); they look like {noun}. A checkpoint all of whose tensors are used is "
            f"accepted. {advice}; if they are left from training, remove them."
        )


def settings_from(
    config: str | os.PathLike[str], identify: Callable[[Any], tuple[str, str]], **options: Any
) -> Kind:
    """Return the kind of a name in KINDS, or one read from a pipeline's folder or repository.

    `identify` returns the family and the task of a pipeline class by the name that model_index.json has.
    """
    if isinstance(config, str) and config in KINDS:
        return replace(KINDS[config], twin=None)
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


def _fetched(text: str, *, is_path: bool, revision: str | None, **options: Any) -> Path:
    """The local copy of a file of the hub."""
    from huggingface_hub import constants

    address = text.replace(constants.ENDPOINT, "https://huggingface.co", 1)
    if match := _ADDRESS.fullmatch(address.split("?")[0]):
        repository, named, path = (unquote(match[key]) for key in ("repository", "revision", "path"))
        if revision not in (None, named):
            raise InputError(
                f"{text} names the revision {named!r}, and revision={revision!r} another. Pass one of them."
            )
        revision = named
    elif "://" in text:
        raise CheckpointError(
            f"{text} is an address outside the hub. A path, 'org/name/file.safetensors' or a file's address "
            f"on the hub is accepted. Download the file and pass its path."
        )
    else:
        parts = text.split("/")
        if is_path or len(parts) < 3 or "\\" in text or parts[0] in ("", ".", "..", "~"):
            raise CheckpointError(
                f"{text} is not there. A path, 'org/name/file.safetensors' or a file's address on the hub is "
                f"accepted. Check the path; relative ones start at {Path.cwd()}."
            )
        repository, path = "/".join(parts[:2]), "/".join(parts[2:])
    folder, _, wanted = path.rpartition("/")

    def choose(names: Sequence[str]) -> str:
        if wanted not in names:
            there = sorted(name for name in names if names_single_file(name))
            raise CheckpointError(
                f"{repository} has no file {path}. Files with weights in that folder: "
                f"{_first(there) or 'none'}. Check the name and the folder"
            )
        return wanted

    try:
        return Checkpoint.open(repository, revision=revision, **options).choose_file(folder, choose)
    except CheckpointError as error:
        raise type(error)(
            f"{text} is no file on this machine (relative paths start at {Path.cwd()}), nor does it come "
            f"from the hub: {error}"
        ) from error


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends so, what an address may carry behind a question mark left aside."""
    return name.split("?")[0].lower().endswith(suffixes)


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
