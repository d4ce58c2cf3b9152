"""Tiles of any side, with any overlap, over pictures of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from hypothesis import given, settings, strategies as st

from retouch.models.autoencoder import AutoencoderKL, tiled
from retouch.models.movq import VQModel


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    tile=st.integers(1, 9),
    overlap=st.sampled_from([0, 0.01, 0.125, 0.25, 0.3, 0.5, 0.75, 0.99]),
    factor=st.sampled_from([1, 2, 4]),
    rest=st.integers(0, 3),
)
def test_tiles_make_the_whole(
    height: int, width: int, tile: int, overlap: float, factor: int, rest: int
) -> None:
    """Where a result depends on its own place alone, nothing may tell that there were tiles."""
    latents = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))

    def decode(x: torch.Tensor) -> torch.Tensor:
        assert max(x.shape[-2:]) <= tile
        return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    def encode(x: torch.Tensor) -> torch.Tensor:
        assert max(x.shape[-2:]) <= tile * factor
        return F.avg_pool2d(x, factor)

    pixels = latents.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert_close(tiled(decode, latents, tile, (1, factor), overlap), pixels)
    ragged = F.pad(pixels, (0, rest % factor) * 2)  # the last latent's share and a bit, which makes none
    assert_close(tiled(encode, ragged, tile, (factor, 1), overlap), latents)


SMALL: dict[str, Any] = {"block_out_channels": (64, 64, 64)}  # two for each group of the norm
MODELS = {
    AutoencoderKL: {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
    VQModel: {
        "norm_type": "spatial",
        "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    },
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("sides", [(32, 8), (24, 6), (20, 5), (30, 7), (4, 1), (3, 0), (8, 9)], ids=str)
@torch.no_grad()
def test_results_are_of_the_right_size(model: Any, sides: tuple[int, int]) -> None:
    """The two sides need not fit each other: people set one of them."""
    autoencoder = model(**SMALL, **MODELS[model])
    autoencoder.enable_tiling()
    autoencoder.tile_sample_min_size, autoencoder.tile_latent_min_size = sides
    seen: list[int] = []
    for part in (autoencoder.encoder, autoencoder.decoder):
        part.register_forward_hook(lambda _, args, __: seen.append(max(args[0].shape[-2:])))
    found = autoencoder.encode(torch.rand(1, 3, 44, 60))[0]
    latents = found.mode() if model is AutoencoderKL else found
    assert latents.shape[-2:] == (11, 15)
    assert max(seen) <= max(sides[0], 4)
    seen.clear()
    assert autoencoder.decode(latents).sample.shape == (1, 3, 44, 60)
    assert max(seen) <= max(sides[1], 1)
