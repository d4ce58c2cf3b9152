"""The tiny autoencoder compared with the reference's: alone, as files, and as the VAE of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import assert_close, share_weights
from pipeline_pairs import Pair, load, mask, photo
from tiny_checkpoints import randomised

import retouch
from retouch.errors import ConfigError
from retouch.kernels import optimize
from retouch.models.tiny_autoencoder import AutoencoderTiny

pytestmark = pytest.mark.usefixtures("no_gradients")

TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (12, 12, 12, 12),
    "num_encoder_blocks": (1, 2, 1, 1),
    "num_decoder_blocks": (2, 1, 1, 1),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "SD": TINY,
    "no blocks at the end": TINY | {"num_decoder_blocks": (1, 0, 2, 0)},
    "a decoder of its own depth": TINY | {"encoder_block_out_channels": (4,), "num_encoder_blocks": (0,)},
    "sixteen latent channels": TINY | {"latent_channels": 16, "latent_magnitude": 2, "latent_shift": 0.25},
    "three times the size": TINY | {"upsampling_scaling_factor": 3},
}


def pair(settings: dict[str, Any] = TINY) -> tuple[AutoencoderTiny, Any]:
    ours, theirs = AutoencoderTiny(**settings).eval(), randomised(diffusers.AutoencoderTiny(**settings))
    share_weights(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_encode_and_decode(settings: dict[str, Any]) -> None:
    ours, theirs = pair(settings)
    pixels = torch.rand(2, 3, 40, 24) * 2 - 1
    assert_close(ours.encode(pixels).latents, lambda: theirs.encode(pixels).latents)
    latents = 4 * torch.randn(2, ours.config.latent_channels, 5, 3)  # some outside a picture's range
    assert_close(ours.decode(latents).sample, lambda: theirs.decode(latents).sample)
    assert_close(
        ours.decode(latents, return_dict=False)[0], lambda: theirs.decode(latents, return_dict=False)[0]
    )
    assert_close(ours.scale_latents(latents), lambda: theirs.scale_latents(latents))
    assert_close(ours.unscale_latents(latents), lambda: theirs.unscale_latents(latents))


def test_there_and_back_through_bytes() -> None:
    ours, theirs = pair()
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    assert_close(ours(pixels).sample, lambda: theirs(pixels).sample)


def test_the_published_architecture() -> None:
    """The defaults are those of TAESD, for SD and for SDXL."""
    ours, theirs = AutoencoderTiny(), diffusers.AutoencoderTiny()
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.config.block_out_channels == tuple(theirs.config.block_out_channels)
    assert {key: theirs.config[key] for key in ours.config} == ours.config.to_dict() | {
        key: value for key, value in ours.config.items() if isinstance(value, tuple)
    }


def test_prepared_layers_answer_the_same() -> None:
    ours, theirs = pair()
    latents = torch.randn(1, 4, 6, 5)
    assert_close(optimize(ours).decode(latents).sample, lambda: theirs.decode(latents).sample)


def test_files_of_either_load_in_the_other(tmp_path: Path) -> None:
    ours, theirs = pair()
    latents = torch.randn(1, 4, 4, 4)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert_close(
        AutoencoderTiny.from_pretrained(tmp_path / "theirs").decode(latents).sample,
        lambda: theirs.decode(latents).sample,
    )
    loaded = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "ours")
    assert_close(ours.decode(latents).sample, lambda: loaded.decode(latents).sample)


def test_tiles_and_slices() -> None:
    """The seams differ from the reference's, but no pixel is far from the picture without tiles."""
    ours, _ = pair()
    latents = torch.randn(2, 4, 20, 14)
    whole = ours.decode(latents).sample
    ours.enable_slicing()
    sliced = ours.decode(latents).sample
    ours.disable_slicing()
    assert_close(sliced, lambda: ours.decode(latents).sample)
    ours.enable_tiling()
    ours.tile_sample_min_size, ours.tile_latent_min_size = 64, 8
    tiles = ours.decode(latents).sample
    assert tiles.shape == whole.shape
    assert 0 < (tiles - whole).abs().mean() < 0.1 * whole.std()


@pytest.mark.parametrize(
    "settings, message",
    [
        (TINY | {"decoder_block_out_channels": (8, 8, 8)}, r"num_decoder_blocks = \(2, 1, 1, 1\)"),
        (TINY | {"encoder_block_out_channels": (8, 8, 8, 4)}, "the same width at all levels"),
        (TINY | {"act_fn": "silu"}, "act_fn = 'silu'.*Supported: 'relu'"),
    ],
)
def test_what_it_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderTiny(**settings)


@pytest.mark.parametrize("task", ["text2image", "image2image", "inpaint", "inpaint from noise"])
def test_in_place_of_the_vae(tiny_sd: Path, task: str) -> None:
    """The same seed gives the same pixels: encoding draws no noise, and latents are not scaled."""
    task, _, whole = task.partition(" ")
    name = {
        "text2image": "StableDiffusionPipeline",
        "image2image": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
    }[task]
    pipelines = Pair(load(retouch, name, tiny_sd), load(diffusers, name, tiny_sd), task)
    ours, theirs = pair()
    changed = pipelines.changed()
    changed.ours.vae, changed.theirs.vae = ours, theirs
    given: dict[str, Any] = {} if task == "text2image" else {"image": photo()}
    if task == "inpaint":
        given["mask_image"] = mask()
    if task != "text2image" and not whole:
        given["strength"] = 0.6
    changed.compare(**given)


def test_a_pipeline_that_names_one(tiny_sd: Path, tmp_path: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd, vae=pair()[1])
    theirs.save_pretrained(tmp_path)
    loaded = retouch.AutoPipelineForInpainting.from_pretrained(tmp_path)
    assert isinstance(loaded.vae, retouch.AutoencoderTiny) and loaded.vae_scale_factor == 8
    loaded.save_pretrained(tmp_path / "again")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "again")
    latents = torch.randn(1, 4, 3, 3)
    assert_close(loaded.vae.decode(latents).sample, lambda: again.vae.decode(latents).sample)
