"""Checkpoints as one file in the original layout.

Tiny ones are written from the folders of tiny_checkpoints.py. Full-size ones have only zeros and take no room
on disk.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retouch.checkpoints.original_kinds import KINDS, Kind
from retouch.checkpoints.original_layout import PLACES, origins, text_encoder_shapes, to_original
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.controlnet import ControlNetModel
from retouch.models.unet import UNet2DConditionModel

MODELS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "controlnet": ControlNetModel,
}


def original_state(folder: Path, text_prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Return all weights of a pipeline's folder under original names, text encoders below these prefixes."""
    state: dict[str, Tensor] = {}
    for part in ("unet", "vae"):
        state |= original_model(folder / part, part)
    for part, prefix in text_prefixes.items():
        state |= original_text_encoder(folder / part, prefix)
    return state


def original_model(folder: Path, part: str, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the weights of a model that the reference saved, under their original names."""
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    model = MODELS[part]
    config = model.config_class.from_dict(read_json(folder / "config.json"))
    written = to_original(state, origins(model.__name__, config, state))
    place = PLACES[part][0][0] if prefix is None else prefix
    return {place + name: tensor for name, tensor in written.items()}


def original_text_encoder(folder: Path, prefix: str) -> dict[str, Tensor]:
    settings = read_json(folder / "config.json")
    rule = next(rule for places in PLACES.values() for place, rule in places if place == prefix)
    has_projection = settings["architectures"] == ["CLIPTextModelWithProjection"]
    stored = load_file(folder / "model.safetensors")
    names = text_encoder_shapes(settings, has_projection)
    state = {name: stored.get(name, stored.get(name.removeprefix("text_model."))) for name in names}
    return {
        prefix + name: tensor for name, tensor in to_original(state, origins(rule, settings, names)).items()
    }


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write(path: Path, state: Mapping[str, Tensor], **metadata: str) -> Path:
    """Write a safetensors file; thirds of one tensor become tensors of their own."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata=metadata or None)
    return path


def sd_1(folder: Path) -> dict[str, Tensor]:
    """Add further tensors of published files: the schedule, counters and position ids."""
    state = original_state(folder, {"text_encoder": "cond_stage_model.transformer."})
    return state | {
        "alphas_cumprod": torch.ones(1000),
        "betas": torch.ones(1000),
        "log_one_minus_alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(8, 4, 3, 3),
        "model_ema.num_updates": torch.tensor(7),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def sd_2(folder: Path) -> dict[str, Tensor]:
    """Add the last text layer and the projection, which SD 2 does not use."""
    prefix = "cond_stage_model.model."
    state = original_state(folder, {"text_encoder": prefix})
    last = f"{prefix}transformer.resblocks.2."
    unused = {
        name.replace(".2.", ".3."): torch.ones_like(value)
        for name, value in state.items()
        if name.startswith(last)
    }
    return (
        state
        | unused
        | {f"{prefix}text_projection": torch.ones(32, 32), f"{prefix}logit_scale": torch.tensor(4.6)}
    )


def sdxl(folder: Path) -> dict[str, Tensor]:
    prefixes = {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    }
    if not (folder / "text_encoder").is_dir():
        prefixes = {"text_encoder_2": "conditioner.embedders.0.model."}
    state = original_state(folder, prefixes)
    return state | {
        f"{prefixes['text_encoder_2']}logit_scale": torch.tensor(4.6),
        "denoiser.sigmas": torch.ones(1000),
    }


WRITERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "tiny_sd": sd_1,
    "tiny_sd_inpaint": sd_1,
    "tiny_sd2": sd_2,
    "tiny_sd2_inpaint": sd_2,
    "tiny_sdxl": sdxl,
    "tiny_sdxl_inpaint": sdxl,
    "tiny_sdxl_refiner": sdxl,
}


def meta_model(part: str, settings: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return MODELS[part].from_config(settings)


def text_prefixes(kind: Kind) -> dict[str, str]:
    """Return the prefixes of the text encoders in original files of a kind."""
    if "text_encoder_2" not in kind.parts:
        is_open_clip = kind.settings_of("text_encoder")["hidden_act"] == "gelu"
        return {"text_encoder": f"cond_stage_model.{'model' if is_open_clip else 'transformer'}."}
    if "text_encoder" not in kind.parts:
        return {"text_encoder_2": "conditioner.embedders.0.model."}
    return {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    }


def full_size(name: str) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint under their original names, on the meta device."""
    kind = KINDS[name]
    state: dict[str, Tensor] = {}
    for part in ("unet", "vae"):
        model = meta_model(part, kind.settings_of(part))
        own = model.state_dict()
        written = to_original(own, origins(type(model).__name__, model.config, own))
        state |= {PLACES[part][0][0] + key: tensor for key, tensor in written.items()}
    for part, prefix in text_prefixes(kind).items():
        class_name, settings = kind.parts[part]
        shapes = text_encoder_shapes(settings, class_name.endswith("WithProjection"))
        rule = next(rule for place, rule in PLACES[part] if place == prefix)
        own = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        written = to_original(own, origins(rule, settings, own))
        state |= {prefix + key: tensor for key, tensor in written.items()}
    return state


def write_zeros(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """Write a file of float32 zeros in the shapes of these tensors. The zeros take no room on disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="session")
def tiny_single_file(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[Path, Path]]:
    """Return a function from the name of a tiny checkpoint to its single file and its folder."""
    folder = tmp_path_factory.mktemp("single-files")

    def make(name: str) -> tuple[Path, Path]:
        source, path = request.getfixturevalue(name), folder / f"{name}.safetensors"
        if not path.exists():
            write(path, WRITERS[name](source))
        return path, source

    return make
