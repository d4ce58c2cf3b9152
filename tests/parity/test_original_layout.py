"""The table of original names compared with the reference's conversion of the same files, both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as reference
from tiny_checkpoints import randomised
from tiny_single_files import WRITERS, full_size, meta_model, text_prefixes, write
from torch import Tensor, nn

import retouch
from retouch.checkpoints.original_kinds import KINDS
from retouch.checkpoints.original_layout import PLACES, origins, text_encoder_shapes, to_original
from retouch.models.controlnet import ControlNetModel

# Lengths of the sorted lists "name [shape]" that stable-diffusion-webui-model-toolkit made from the published
# files. One name or one number more or less would change them.
LENGTHS = {"sd15": 36314, "sd2": 36218, "sdxl": 101976, "sdxl-refiner": 71062}
LENGTH_OF_VAE, LENGTH_OF_CONTROLNET = 10149, 16884
LENGTHS_OF_TEXT_ENCODERS = {"cond_stage_model.model.": 14193, "conditioner.embedders.1.model.": 18913}


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def length_of_list(state: dict[str, Tensor]) -> int:
    lines = [f"{name} [{','.join(map(str, tensor.shape))}]" for name, tensor in state.items()]
    return len("\n".join(sorted(lines)))


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_tensor_of_a_published_checkpoint_has_the_reference_s_place(name: str) -> None:
    kind, file = KINDS[name], full_size(name)
    for part, convert in (
        ("unet", reference.convert_ldm_unet_checkpoint),
        ("vae", reference.convert_ldm_vae_checkpoint),
    ):
        model = meta_model(part, kind.settings_of(part))
        assert shapes(convert(dict(file), dict(model.config))) == shapes(model.state_dict())
    assert length_of_list(below("first_stage_model.", file)) == LENGTH_OF_VAE
    length = LENGTHS.get(name.removesuffix("-inpainting").removesuffix("-base"))
    assert length_of_list(below("model.diffusion_model.", file)) == length


@pytest.mark.parametrize("name", KINDS)
def test_every_tensor_of_a_text_encoder_has_the_reference_s_place(name: str) -> None:
    kind, file = KINDS[name], full_size(name)
    for part, prefix in text_prefixes(kind).items():
        class_name, settings = kind.parts[part]
        expected = text_encoder_shapes(settings, class_name.endswith("WithProjection"))
        if prefix.endswith("transformer."):
            converted = reference.convert_ldm_clip_checkpoint(file)
        else:
            config = type("Config", (), settings)
            model = type("Model", (), {"config": config})
            converted = reference.convert_open_clip_checkpoint(model, dict(file), prefix)
        assert shapes(converted) == expected


def test_text_encoders_are_those_of_transformers() -> None:
    import transformers

    for name in ("sd15", "sd2", "sdxl"):
        for part in text_prefixes(KINDS[name]):
            class_name, settings = KINDS[name].parts[part]
            with torch.device("meta"):
                encoder = getattr(transformers, class_name)(transformers.CLIPTextConfig.from_dict(settings))
            own = {
                name if name.startswith("text_") else f"text_model.{name}": tuple(tensor.shape)
                for name, tensor in encoder.state_dict().items()
            }
            assert text_encoder_shapes(settings, class_name.endswith("WithProjection")) == own


def test_text_encoders_have_the_published_lists() -> None:
    for name, prefix in (("sd2", "cond_stage_model.model."), ("sdxl", "conditioner.embedders.1.model.")):
        state = below(prefix, full_size(name)) | {"logit_scale": torch.empty(())}
        if name == "sd2":  # its files have one more layer, and the projection
            last = below("transformer.resblocks.22.", state)
            state |= {f"transformer.resblocks.23.{key}": tensor for key, tensor in last.items()}
            state["text_projection"] = torch.empty(1024, 1024)
        assert length_of_list(state) == LENGTHS_OF_TEXT_ENCODERS[prefix]


@pytest.mark.parametrize("name", ["sd15", "sd2"])
def test_every_tensor_of_a_controlnet_has_the_reference_s_place(name: str) -> None:
    settings = dict(KINDS[name].settings_of("unet"))
    del settings["sample_size"]
    model = meta_model("controlnet", settings)
    own = model.state_dict()
    file = to_original(own, origins("ControlNetModel", model.config, own))
    if name == "sd15":
        assert length_of_list(file) == LENGTH_OF_CONTROLNET
    file = {f"control_model.{key}": tensor for key, tensor in file.items()}
    assert shapes(reference.convert_controlnet_checkpoint(file, dict(model.config))) == shapes(own)


def weights(pipeline: Any) -> dict[str, dict[str, Tensor]]:
    return {
        name: part.state_dict() for name, part in pipeline.components.items() if isinstance(part, nn.Module)
    }


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_becomes_what_the_reference_makes_of_it(
    name: str, tiny_single_file: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    path, folder = tiny_single_file(name)
    ours = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder)
    from_folder = retouch.AutoPipelineForInpainting.from_pretrained(folder)
    for part, state in weights(from_folder).items():
        assert_same(weights(ours)[part], state)
    assert ours.scheduler.config == from_folder.scheduler.config

    # The reference does not expect the last text layer in a file smaller than the published one.
    file = {key: tensor for key, tensor in WRITERS[name](folder).items() if ".resblocks.3." not in key}
    file = {key: tensor for key, tensor in file.items() if name[:8] != "tiny_sd2" or "text_proj" not in key}
    kind = diffusers.StableDiffusionXLPipeline if "xl" in name else diffusers.StableDiffusionPipeline
    theirs = kind.from_single_file(str(write(tmp_path / "file.safetensors", file)), config=str(folder))
    for part, state in weights(theirs).items():
        assert_same(weights(ours)[part], state)


@pytest.mark.parametrize("name", WRITERS)
def test_there_and_back(name: str, tiny_single_file: Callable[[str], tuple[Path, Path]]) -> None:
    """Saving the models gives each tensor of the file again, except those left from training."""
    path, folder = tiny_single_file(name)
    pipeline = retouch.AutoPipelineForInpainting.from_single_file(path, config=folder)
    again: dict[str, Tensor] = {}
    for part in ("unet", "vae"):
        model = getattr(pipeline, part)
        own = model.state_dict()
        written = to_original(own, origins(type(model).__name__, model.config, own))
        again |= {PLACES[part][0][0] + key: tensor for key, tensor in written.items()}
    file = WRITERS[name](folder)
    for part in ("text_encoder", "text_encoder_2"):
        encoder = pipeline.components.get(part)
        if encoder is None:
            continue
        prefix, rule = next(place for place in PLACES[part] if any(key.startswith(place[0]) for key in file))
        own = {
            key if key.startswith("text_") else f"text_model.{key}": tensor
            for key, tensor in encoder.state_dict().items()
        }
        written = to_original(own, origins(rule, encoder.config.to_dict(), own))
        again |= {prefix + key: tensor for key, tensor in written.items()}
    left = {key for key in file if key not in again}
    assert_same(again, {key: tensor for key, tensor in file.items() if key not in left})
    expected = {
        "tiny_sd": 7,  # the schedule, averages and position ids
        "tiny_sd2": 14,  # the unused layer of 12 tensors, the projection and the scale
        "tiny_sdxl": 2,
    }
    assert len(left) == expected[name.removesuffix("_inpaint").removesuffix("_refiner")]


def test_a_controlnet_becomes_what_the_reference_makes_of_it(tiny_sd: Path, tmp_path: Path) -> None:
    model = randomised(
        diffusers.ControlNetModel(
            block_out_channels=(8, 16, 16),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=32,
            norm_num_groups=4,
            conditioning_embedding_out_channels=(8, 16, 16, 32),
        )
    )
    model.save_pretrained(tmp_path / "folder")
    state = model.state_dict()
    config = ControlNetModel.config_class.from_dict(model.config)
    file = to_original(state, origins("ControlNetModel", config, state))
    for prefix in ("control_model.", ""):
        path = write(tmp_path / "net.safetensors", {prefix + key: tensor for key, tensor in file.items()})
        ours = ControlNetModel.from_single_file(path, config=tmp_path / "folder")
        theirs = diffusers.ControlNetModel.from_single_file(str(path), config=str(tmp_path / "folder"))
        assert_same(ours.state_dict(), state)
        assert_same(ours.state_dict(), theirs.state_dict())
    whole = WRITERS["tiny_sd"](tiny_sd) | {f"control_model.{key}": tensor for key, tensor in file.items()}
    path = write(tmp_path / "whole.safetensors", whole)
    assert_same(ControlNetModel.from_single_file(path, config=tmp_path / "folder").state_dict(), state)
    path = write(tmp_path / "ours.safetensors", state)
    assert_same(ControlNetModel.from_single_file(path, config=tmp_path / "folder").state_dict(), state)
