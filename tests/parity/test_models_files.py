"""Files of models: the reference loads ours, and we load the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal
from diffusers import AutoencoderKL as TheirAutoencoder, UNet2DConditionModel as TheirUNet
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tiny_checkpoints import randomised, tiny_unet, tiny_vae

from retouch.errors import CheckpointError, ConfigError
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel

pytestmark = pytest.mark.usefixtures("no_gradients")

WEIGHTS = "diffusion_pytorch_model.safetensors"


def predict(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 7, 32, generator=generator)
    dtype = next(unet.parameters()).dtype
    return unet(latents.to(dtype), torch.tensor(500), text.to(dtype)).sample


def decode(vae: Any) -> torch.Tensor:
    return vae.decode(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))).sample


SAVED_AS: dict[str, dict[str, Any]] = {
    "whole": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "60KB"},
    "shards of a variant": {"max_shard_size": "60KB", "variant": "fp16"},
}


@pytest.mark.parametrize("how", SAVED_AS.values(), ids=SAVED_AS.keys())
def test_the_reference_loads_what_we_save(how: dict[str, Any], tmp_path: Path) -> None:
    ours = randomised(UNet2DConditionModel.from_config(tiny_unet(version=2).config))
    ours = ours.half() if "variant" in how else ours
    ours.save_pretrained(tmp_path, **how)
    assert ("max_shard_size" in how) == any("index" in file.name for file in tmp_path.iterdir())
    theirs, report = TheirUNet.from_pretrained(
        tmp_path, variant=how.get("variant"), output_loading_info=True, torch_dtype="auto"
    )
    assert not any(report.values()), report
    theirs.to(ours.dtype)
    assert_close(predict(ours), lambda: predict(theirs))


@pytest.mark.parametrize("how", SAVED_AS.values(), ids=SAVED_AS.keys())
def test_we_load_what_the_reference_saves(how: dict[str, Any], tmp_path: Path) -> None:
    theirs = tiny_unet(version=2)
    theirs = theirs.half() if "variant" in how else theirs
    theirs.save_pretrained(tmp_path / "unet", **how)
    assert ("max_shard_size" in how) == any("index" in file.name for file in (tmp_path / "unet").iterdir())
    ours = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet", variant=how.get("variant"))
    assert ours.dtype == torch.float32 and not ours.training
    theirs.float()
    assert_close(predict(ours), lambda: predict(theirs))


def test_the_autoencoder_both_ways(tmp_path: Path) -> None:
    theirs = tiny_vae(scaling_factor=0.13, force_upcast=False)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderKL.from_pretrained(tmp_path / "theirs")
    assert_close(decode(ours), lambda: decode(theirs))
    ours.save_pretrained(tmp_path / "ours")
    again = TheirAutoencoder.from_pretrained(tmp_path / "ours")
    assert_equal(decode(again), decode(theirs))
    assert again.config.scaling_factor == 0.13 and again.config.force_upcast is False


def test_a_complete_checkpoint(tiny_sd_inpaint: Path) -> None:
    ours = UNet2DConditionModel.from_pretrained(tiny_sd_inpaint, subfolder="unet", dtype=torch.bfloat16)
    assert ours.config.in_channels == 9 and ours.dtype == torch.bfloat16
    theirs = TheirAutoencoder.from_pretrained(tiny_sd_inpaint, subfolder="vae")
    loaded = AutoencoderKL.from_pretrained(tiny_sd_inpaint, subfolder="vae")
    assert_close(decode(loaded), lambda: decode(theirs))


def test_saving_what_was_loaded_changes_nothing(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "first")
    UNet2DConditionModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_averaged_weights_load(tmp_path: Path) -> None:
    theirs = tiny_unet()
    EMAModel(theirs.parameters(), model_cls=TheirUNet, model_config=theirs.config).save_pretrained(tmp_path)
    assert "optimization_step" in json.loads((tmp_path / "config.json").read_text())
    assert_close(predict(UNet2DConditionModel.from_pretrained(tmp_path)), lambda: predict(theirs))


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_an_autoencoder_of_the_old_spelling(as_convolutions: bool, tmp_path: Path) -> None:
    theirs = tiny_vae()
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = 0
    for key in list(state):
        for today, then in old.items():
            if f"attentions.0.{today}." in key:
                tensor = state.pop(key)
                if as_convolutions and key.endswith("weight"):
                    tensor = tensor[:, :, None, None]
                state[key.replace(today, then)] = tensor
                renamed += 1
    assert renamed == 2 * 4 * 2
    save_file(state, tmp_path / WEIGHTS)
    assert_close(decode(AutoencoderKL.from_pretrained(tmp_path)), lambda: decode(theirs))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused(fault: str, tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    key = "mid_block.resnets.1.conv2.weight"
    tensor = state.pop(key)
    if fault == "unexpected":
        state |= {key: tensor, "mid_block.resnets.2.conv2.weight": tensor.clone()}
    elif fault == "shape":
        state[key] = tensor[:, :3].contiguous()
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        UNet2DConditionModel.from_pretrained(tmp_path)
    named = key.replace("1.conv2", "2.conv2") if fault == "unexpected" else key
    assert fault in str(caught.value) and named in str(caught.value)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


def test_a_config_that_is_not_supported_is_refused_by_file(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mid_block_type": "UNetMidBlock3D"}))
    with pytest.raises(ConfigError, match="mid_block_type = 'UNetMidBlock3D'") as caught:
        UNet2DConditionModel.from_pretrained(tmp_path)
    assert str(file) in str(caught.value)
