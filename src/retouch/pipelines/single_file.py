"""The parts of a pipeline out of one file in the original layout.

The file gives the weights; the settings are those of the kind of checkpoint that it is. Everything is checked
before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from retouch.checkpoints.contents import what_it_is
from retouch.checkpoints.original_kinds import KINDS, Kind, Settings
from retouch.checkpoints.original_layout import PLACES, text_encoder_shapes
from retouch.checkpoints.single_file import SingleFile, settings_from
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.pipelines.components import (
    clip_tokenizer,
    is_tokenizer,
    load_component,
    model_class,
    text_encoder_from,
)
from retouch.schedulers import by_name


def open_single_file(
    name: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    use_safetensors: bool | None = None,
    **location: Any,
) -> tuple[SingleFile, Kind]:
    """The file, and the kind of checkpoint that it is, unless `config` tells."""
    file = SingleFile.open(name, revision=revision, use_safetensors=use_safetensors, **location)
    return file, KINDS[file.kind()] if config is None else settings_from(config, **location)


def load_parts(
    file: SingleFile,
    kind: Kind,
    given: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    prediction_type: str | None,
) -> dict[str, Any]:
    """All parts of this kind; those that the caller gives are not looked for in the file."""
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
    parts = dict(given)
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


def require_family(file: SingleFile, kind: Kind, pipeline: type) -> None:
    """Refuse a checkpoint of another family than the pipeline's."""
    from retouch.pipelines import names  # they are made of the pipeline that calls this

    front = getattr(names, kind.pipeline, None)
    if front is not None and not issubclass(pipeline, front.__bases__[0]):
        raise ConfigError(
            f"{file.path} is a checkpoint of {kind.title}, for which {pipeline.__name__} is not made. Use a "
            f"class of the family of {kind.pipeline}, or let AutoPipelineForInpainting or its like choose."
        )


def predicts_v(unet: nn.Module) -> bool:
    """Whether a UNet of SD 2.x was trained to predict v: its file does not tell, but its answer does.

    At the last timestep almost nothing but noise is left. Asked for the noise, a model gives back what it
    sees; asked for v, it gives the negative of a picture, which has little to do with what it sees.
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
        f"{what_it_is(file.shapes)[0]}, read as {kind.title}. A whole checkpoint is expected, or the missing "
        f"parts beside it. Pass {offers}."
    )


def _loader(
    file: SingleFile, kind: Kind, part: str, class_name: str, settings: Settings, dtype: torch.dtype | None
) -> Callable[[], Any]:
    """Check that the file holds the part; the answer loads it."""
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
            f"that part yourself: {part}=..."
        )
    return model.loader(file, settings, dtype=dtype)
