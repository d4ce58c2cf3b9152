"""The autoencoder compared with the reference's: encoding, sampling, decoding, whole, in tiles and slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal, share_weights
from diffusers import AutoencoderKL as TheirAutoencoder
from published_configs import AUTOENCODERS
from tiny_checkpoints import randomised

from retouch.models.autoencoder import AutoencoderKL

pytestmark = pytest.mark.usefixtures("no_gradients")

# Three levels, so tiles of 32 pixels are 8 latents wide and overlap by two.
TINY: dict[str, Any] = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "SD": TINY,
    "two layers": TINY | {"layers_per_block": 2},
    "no attention": TINY | {"mid_block_add_attention": False},
    "no quantisation": TINY | {"use_quant_conv": False, "use_post_quant_conv": False},
    "sixteen latent channels": TINY | {"latent_channels": 16, "shift_factor": 0.1},
}


def pair(settings: dict[str, Any] = TINY) -> tuple[AutoencoderKL, Any]:
    ours, theirs = AutoencoderKL(**settings).eval(), randomised(TheirAutoencoder(**settings))
    share_weights(ours, theirs)
    return ours, theirs


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_encode_draw_decode(settings: dict[str, Any]) -> None:
    ours, theirs = pair(settings)
    pixels = torch.rand(2, 3, 28, 20) * 2 - 1

    def encoded(model: Any) -> list[torch.Tensor]:
        latents = model.encode(pixels).latent_dist
        return [latents.mode(), latents.std, latents.sample(seeded())]

    assert_close(found := encoded(ours), lambda: encoded(theirs))
    drawn = found[-1]
    assert_close(ours.decode(drawn).sample, lambda: theirs.decode(drawn).sample)


def test_a_generator_for_each_picture() -> None:
    ours, theirs = pair()
    pixels = torch.rand(3, 3, 16, 16)

    def drawn(model: Any) -> torch.Tensor:
        return model.encode(pixels).latent_dist.sample([seeded(seed) for seed in (1, 2, 3)])

    assert_close(found := drawn(ours), lambda: drawn(theirs))
    assert_close(found[1:2], lambda: ours.encode(pixels[1:2]).latent_dist.sample(seeded(2)))


def test_extreme_variances_are_held_back() -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        model.quant_conv.weight.mul_(1000)
    pixels = torch.rand(1, 3, 16, 16)
    assert_close(ours.encode(pixels).latent_dist.logvar, lambda: theirs.encode(pixels).latent_dist.logvar)


# Little more than one tile, several, a last tile of a single latent, one short side.
@pytest.mark.parametrize("size", [(36, 32), (56, 100), (28, 76), (100, 16)], ids=str)
@pytest.mark.parametrize("slicing", [True, False])
def test_tiles_and_slices(size: tuple[int, int], slicing: bool) -> None:
    ours, theirs = pair()
    pixels = torch.rand(2, 3, *size) * 2 - 1
    whole = theirs.encode(pixels).latent_dist.mode()
    for model in (ours, theirs):
        model.enable_tiling()
        if slicing:
            model.enable_slicing()
    expected = theirs.encode(pixels).latent_dist.mode()
    assert_close(ours.encode(pixels).latent_dist.mode(), lambda: theirs.encode(pixels).latent_dist.mode())
    assert (expected - whole).abs().max() > 0.01, "tiling did not take place"
    assert_close(ours.decode(whole).sample, lambda: theirs.decode(whole).sample)


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_another_overlap(overlap: float) -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 16, 4, overlap
    latents = torch.randn(1, 4, 9, 14)
    assert_close(ours.decode(latents).sample, lambda: theirs.decode(latents).sample)


def test_tiling_and_slicing_can_be_disabled() -> None:
    ours, _ = pair()
    latents = torch.randn(2, 4, 12, 9)
    whole = ours.decode(latents).sample
    ours.enable_tiling()
    assert (ours.decode(latents).sample - whole).abs().max() > 0.01
    ours.disable_tiling()
    assert_equal(ours.decode(latents).sample, whole)
    calls: list[int] = []
    ours.decoder.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    ours.enable_slicing()
    sliced = ours.decode(latents).sample
    ours.disable_slicing()
    assert_close(sliced, lambda: ours.decode(latents).sample)
    assert calls[:3] == [1, 1, 2]


@pytest.mark.parametrize("sample_posterior", [True, False])
def test_there_and_back(sample_posterior: bool) -> None:
    ours, theirs = pair()
    pixels = torch.rand(1, 3, 16, 24)
    how = {"sample_posterior": sample_posterior}
    assert_close(
        ours(pixels, **how, generator=seeded()).sample,
        lambda: theirs(pixels, **how, generator=seeded()).sample,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tiling", [True, False])
def test_half_precision(dtype: torch.dtype, tiling: bool) -> None:
    ours, theirs = pair()
    pixels = torch.rand(1, 3, 40, 32, dtype=dtype)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    for model in (ours, theirs) if tiling else ():
        model.enable_tiling()
    latents = ours.encode(pixels).latent_dist.sample(seeded())
    assert_close(latents, lambda: theirs.encode(pixels).latent_dist.sample(seeded()))
    assert_close(ours.decode(latents).sample, lambda: theirs.decode(latents).sample)


@pytest.mark.parametrize("tiling", [True, False])
def test_channels_last(tiling: bool) -> None:
    ours, theirs = pair()
    pixels = torch.rand(1, 3, 40, 56)
    for model in (ours, theirs) if tiling else ():
        model.enable_tiling()
    ours = ours.to(memory_format=torch.channels_last)
    latents = ours.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    assert_close(latents, lambda: theirs.encode(pixels).latent_dist.mode())
    assert_close(ours.decode(latents).sample, lambda: theirs.decode(latents).sample)


@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS.keys())
def test_published_configs_give_the_same_tensors(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = AutoencoderKL.from_config(config)
        theirs = TheirAutoencoder.from_config(config)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    # The keys that pipelines read, including defaults.
    for key in ("scaling_factor", "shift_factor", "force_upcast", "latents_mean", "block_out_channels"):
        ours_value, theirs_value = ours.config[key], theirs.config[key]
        assert ours_value == (tuple(theirs_value) if isinstance(theirs_value, list) else theirs_value), key
    assert ours.tile_sample_min_size == theirs.tile_sample_min_size
    assert ours.tile_latent_min_size == theirs.tile_latent_min_size
