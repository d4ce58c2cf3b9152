"""Loading and saving pipelines: folders, hub repositories and single files.

This file finds which parts there are and where they lie. components.py reads and writes one part.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from retouch.checkpoints.contents import describe
from retouch.checkpoints.locate import Checkpoint
from retouch.checkpoints.original_kinds import KINDS, Kind, Settings
from retouch.checkpoints.original_layout import PLACES, text_encoder_shapes
from retouch.checkpoints.single_file import SingleFile, settings_from
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.families.registry import family_and_task
from retouch.pipelines.components import (
    clip_tokenizer,
    is_tokenizer,
    load_component,
    model_class,
    save_component,
    subfolders,
    text_encoder_from,
)
from retouch.pipelines.parts import NamedParts, PartNames
from retouch.schedulers import by_name

FoundPart = tuple[str, Checkpoint, Path, str, str]  # name, where from, folder, name in the checkpoint, class


def named_parts(
    kind: type[NamedParts],
    index: Mapping[str, Any],
    given: Collection[str],
    rename: Callable[[str], str] = str,
) -> PartNames:
    """Return the parts that an index names and the caller does not give.

    `rename` maps a part's name in the checkpoint to the pipeline's name.
    """
    found = {
        rename(name): (name, entry[1])
        for name, entry in index.items()
        if rename(name) in kind.component_names
        and rename(name) not in given
        and isinstance(entry, list)
        and entry[1]
    }
    kind.family.check_found([*given, *found])
    return found


def fetched_parts(
    kind: type[NamedParts], checkpoint: Checkpoint, index: Mapping[str, Any], given: Collection[str]
) -> list[FoundPart]:
    """Bring the parts that the caller does not give onto this machine, and return where they are."""
    found = []
    for source, names in kind.sources(checkpoint, index, given):
        homes = {part: (source.home_of(name), class_name) for part, (name, class_name) in names.items()}
        extra = {} if source is not checkpoint else kind.unlisted_components
        extra = {part: class_name for part, class_name in extra.items() if part not in given}
        # A name with a star may match nothing.
        folder = source.fetch([*subfolders(dict(homes.values())), *(f"{part}*" for part in extra)])
        homes |= {part: (part, class_name) for part, class_name in extra.items() if (folder / part).is_dir()}
        found += [(part, source, folder, *entry) for part, entry in homes.items()]
    return found


def load_folder(
    kind: type[NamedParts],
    checkpoint: Checkpoint,
    given: Mapping[str, Any],
    dtype: torch.dtype | None,
    *,
    pickled: bool,
) -> dict[str, Any]:
    """Load the parts and switches of a checkpoint; those that the caller gives take their place."""
    index = checkpoint.index()
    parts = {name: index[name] for name in kind.family.switches if name in index} | dict(given)
    found = fetched_parts(kind, checkpoint, index, parts)
    for part, source, folder, name, class_name in tqdm(
        found, desc="Loading", unit="part", disable=None, leave=False
    ):
        variant = source.variant_in(name)
        parts[part] = load_component(folder, name, class_name, variant=variant, dtype=dtype, pickled=pickled)
    return parts


def save_folder(
    pipeline: NamedParts, folder: str | os.PathLike[str], variant: str | None, max_shard_size: int | str
) -> None:
    """Write a folder that this library and diffusers load. A failure leaves nothing half-written."""
    target = Path(folder).absolute()
    if target.is_file():
        raise InputError(
            f"{target} is a file. save_pretrained needs the path of a folder.", parameter="folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        staged = Path(temporary)
        for name, part in pipeline.all_components.items():
            if part is not None:
                save_component(part, staged / name, variant, max_shard_size)
        # Switches only where they differ from the default: not every class of the reference knows them.
        defaults = pipeline.family.switches.items()
        index = {key: value for key, value in pipeline.config.items() if (key, value) not in defaults}
        (staged / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for source in sorted(path for path in staged.rglob("*") if path.is_file()):
            place = target / source.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, place)


def open_single_file(
    name: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    use_safetensors: bool | None = None,
    **location: Any,
) -> tuple[SingleFile, Kind]:
    """Open one file in the original layout; return it with its kind of checkpoint.

    `config` names the kind. Without it, the tensors tell.
    """
    file = SingleFile.open(name, revision=revision, use_safetensors=use_safetensors, **location)
    return file, KINDS[file.kind()] if config is None else settings_from(config, family_and_task, **location)


def load_single_file(
    pipeline: type[NamedParts],
    file: SingleFile,
    kind: Kind,
    given: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    prediction_type: str | None,
) -> dict[str, Any]:
    """Load the parts and switches of a single file. Everything is checked before anything is loaded.

    The file holds the weights; the settings are those of its kind of checkpoint. Parts that the caller gives
    are not looked for in the file.
    """
    if kind.family != pipeline.family.name:
        raise ConfigError(
            f"{file.path} is a checkpoint of {kind.title}, and {pipeline.__name__} is for checkpoints of "
            f"{pipeline.family.title}. Use a pipeline class of its family, or let AutoPipelineForInpainting, "
            "AutoPipelineForImage2Image or AutoPipelineForText2Image choose.",
            parameter="name",
        )
    schedule = file.stated_schedule()
    if prediction_type is not None:
        schedule["prediction_type"] = prediction_type
    wanted = {part: entry for part, entry in kind.parts.items() if part not in given}
    _refuse_absent(file, kind, [part for part in wanted if part in PLACES])
    for part in given:
        file.leave(part)
    loaders = {
        part: _loader(file, kind, part, class_name, settings, dtype)
        for part, (class_name, settings) in wanted.items()
        if not class_name.endswith("Scheduler")
    }
    file.refuse_leftovers()
    parts = {key: value for key, value in kind.switches.items() if key in pipeline.family.switches}
    parts |= given
    for part, load in tqdm(loaders.items(), desc="Loading", unit="part", disable=None, leave=False):
        parts[part] = load()
    if kind.twin is not None:
        if "prediction_type" not in schedule:
            schedule["prediction_type"] = "v_prediction" if predicts_v(parts["unet"]) else "epsilon"
        if schedule["prediction_type"] == "epsilon":
            kind = KINDS[kind.twin]
            for part in ("unet", "vae"):  # the same models, trained at another size
                if part in wanted:
                    parts[part].config = type(parts[part].config).from_dict(kind.settings_of(part))
    if "scheduler" in wanted:
        class_name, settings = kind.parts["scheduler"]
        parts["scheduler"] = by_name(class_name).from_config({**settings, **schedule})
    return parts


def predicts_v(unet: nn.Module) -> bool:
    """Return whether a UNet of SD 2.x was trained to predict v. The file does not say; the prediction shows
    it.

    At the last timestep the input is almost pure noise. A model that predicts the noise returns its input;
    one that predicts v returns the negative of a picture, which correlates little with the input.
    """
    config: Any = unet.config
    like = next(unet.parameters())
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(like)
    sample = torch.cat([noise, noise.new_zeros(1, config.in_channels - 4, 8, 8)], dim=1)
    text = noise.new_zeros(1, 77, config.cross_attention_dim)
    with torch.inference_mode():
        answer = unet(sample, torch.tensor(999, device=like.device), text).sample
    return bool(torch.cosine_similarity(answer.float().flatten(), noise.float().flatten(), dim=0) < 0.5)


def _refuse_absent(file: SingleFile, kind: Kind, parts: list[str]) -> None:
    absent = [part for part in parts if file.prefix_of(part) is None]
    if not absent:
        return
    example = {
        "unet": "UNet2DConditionModel.from_pretrained(...)",
        "vae": "AutoencoderKL.from_pretrained(...)",
        "controlnet": "ControlNetModel.from_pretrained(...)",
    }
    offers = ", ".join(f"{part}={example.get(part, f'the {part} of another pipeline')}" for part in absent)
    places = " and ".join(" or ".join(place.rstrip(".") for place, _ in PLACES[part]) for part in absent)
    raise CheckpointError(
        f"{file.path} has no {', '.join(absent)}: there are no tensors below {places}. It is "
        f"{describe(file.shapes)[0]}, read as {kind.title}. A whole checkpoint is expected, or the missing "
        f"parts with it. Pass {offers}.",
        parameter=absent[0],
    )


def _loader(
    file: SingleFile, kind: Kind, part: str, class_name: str, settings: Settings, dtype: torch.dtype | None
) -> Callable[[], Any]:
    """Check that the file holds a part, and return a function that loads it."""
    if is_tokenizer(class_name):
        if kind.folder is None:
            return partial(clip_tokenizer, **settings)
        return partial(load_component, kind.folder, part, class_name, variant=None, dtype=None, pickled=False)
    if class_name.startswith("CLIPTextModel"):
        shapes = text_encoder_shapes(settings, class_name.endswith("WithProjection"))
        claim = file.claim(part, settings, shapes)
        return lambda: text_encoder_from(
            claim.read(dtype or torch.float32), class_name, settings, dtype, source=str(file.path)
        )
    model = model_class(class_name)
    if model is None:
        raise InputError(
            f"{kind.title} has a {class_name} as its {part}, which is not read from an original file. Give "
            f"that part yourself: {part}=...",
            parameter=part,
        )
    return model.loader(file, settings, dtype=dtype)
