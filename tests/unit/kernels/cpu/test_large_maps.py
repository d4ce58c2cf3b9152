"""Maps that are computed in bands of rows equal those of the plain layers, and take less memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from closeness import assert_close
from torch import nn

from retouch.kernels import optimize
from retouch.kernels.cpu import large_maps, onednn
from retouch.models import layers
from retouch.models.autoencoder import AutoencoderKL

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="torch has no oneDNN for this processor")

DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(
        torch.bfloat16,
        id="bfloat16",
        marks=pytest.mark.skipif(not onednn.computes(torch.bfloat16), reason="no bfloat16 here"),
    ),
]


@pytest.fixture(params=[1, 3, 4, 100], ids="{} rows".format)
def all_are_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of so many rows of a small map, of 7 x 32 values in a row."""
    monkeypatch.setattr(large_maps, "LARGE", 1)
    monkeypatch.setattr(large_maps, "BAND", request.param * 7 * 32)


def seeded(module: nn.Module) -> Any:
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, fan**-0.5, generator=draw)
    return module.eval()


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32, 12, 7), (2, 32, 13, 7), (1, 32, 1, 7), (1, 32, 2, 1)])
@pytest.mark.parametrize("width", [32, 48])
def test_residual_blocks(
    width: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = seeded(layers.ResnetBlock2D(32, width, groups=8, eps=1e-6)).to(dtype)
    x = (3 * torch.randn(shape) + 2).to(dtype)
    taken = []
    real = large_maps._normed_convolution
    monkeypatch.setattr(large_maps, "_normed_convolution", lambda *a, **k: taken.append(1) or real(*a, **k))
    plain = copy.deepcopy(block)
    with torch.no_grad():
        before = x.clone()
        found = optimize(block)(x)
        assert len(taken) == 2
        assert torch.equal(x, before), "what comes in is the caller's"
        assert_close(found, lambda: plain(x))


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("affine", [True, False])
def test_norms(affine: bool) -> None:
    norm = seeded(nn.GroupNorm(4, 32, affine=affine))
    x = torch.randn(2, 32, 9, 7) * torch.rand(32, 1, 1) + torch.arange(32)[:, None, None]
    plain = copy.deepcopy(norm)
    with torch.no_grad():
        assert_close(optimize(norm)(x), lambda: plain(x))


def test_digits_are_kept() -> None:
    """torch's own norm of a map in channels-last order has 70 dB here."""
    x = (torch.randn(1, 64, 512, 512) + 10).contiguous(memory_format=torch.channels_last)
    norm = optimize(nn.GroupNorm(32, 64))
    with torch.no_grad():
        error = norm(x)[:, :8].double() - nn.GroupNorm(4, 8).double()(x[:, :8].double())
    assert -10 * error.square().mean().log10() > 115


@pytest.mark.usefixtures("all_are_large")
def test_a_block_whose_weight_somebody_holds() -> None:
    block = seeded(layers.ResnetBlock2D(32, 32, groups=8, eps=1e-6))
    x, weight = torch.randn(1, 32, 12, 7), block.conv2.weight
    plain = copy.deepcopy(block)
    with torch.no_grad():
        assert_close(optimize(block)(x), lambda: plain(x))
    assert block.conv2.weight is weight


@pytest.mark.usefixtures("all_are_large")
def test_a_listener_in_a_block_hears() -> None:
    block, heard = optimize(seeded(layers.ResnetBlock2D(32, 32, groups=8, eps=1e-6))), []
    block.norm2.register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad():
        block(torch.randn(1, 32, 12, 7))
    assert heard == [1]


def tiny_vae() -> Any:
    width = (32, 64)
    return seeded(
        AutoencoderKL(
            block_out_channels=width,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
        )
    )


@pytest.mark.usefixtures("all_are_large")
def test_an_autoencoder() -> None:
    pixels, latents = torch.randn(2, 3, 30, 34), torch.randn(2, 4, 15, 17)

    def there_and_back(vae: Any) -> list[torch.Tensor]:
        return [vae.encode(pixels).latent_dist.mean, vae.decode(latents).sample]

    with torch.no_grad():
        found = there_and_back(optimize(tiny_vae()))
        assert_close(found, lambda: there_and_back(tiny_vae()))
    assert found[1].is_contiguous()


@pytest.mark.usefixtures("all_are_large")
def test_a_decoder_lets_go_of_what_has_been_read() -> None:
    decoder, seen = optimize(tiny_vae()).decoder, []
    alive = []

    def look(_: nn.Module, __: Any, result: torch.Tensor) -> None:
        seen.append(weakref.ref(result))
        alive.append(sum(each() is not None for each in seen))

    layers_below = [layer for block in decoder.up_blocks for layer in (*block.resnets, *block.upsamplers)]
    for layer in layers_below:
        layer.register_forward_hook(look)
    with torch.no_grad():
        decoder(torch.randn(1, 4, 8, 7))
    assert alive == [1] + [2] * (len(layers_below) - 1), "only what goes in and what comes out"


@pytest.mark.usefixtures("all_are_large")
def test_a_listener_to_a_decoders_block_hears() -> None:
    decoder, heard = optimize(tiny_vae()).decoder, []
    decoder.up_blocks[0].register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad():
        decoder(torch.randn(1, 4, 8, 7))
    assert heard == [1]


def test_huge_maps_are_given_back_in_the_midst_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def noted() -> Iterator[None]:
        entered.append(1)
        yield

    monkeypatch.setattr(large_maps, "releasing_memory", noted)
    decoder, latents = optimize(tiny_vae()).decoder, torch.randn(1, 4, 8, 8)
    monkeypatch.setattr(large_maps, "LARGE", 1)
    for huge, expected in ((16 * 16 * 32, [1]), (16 * 16 * 32 + 1, [])):
        monkeypatch.setattr(large_maps, "HUGE", huge)
        entered.clear()
        with torch.no_grad():
            decoder(latents)
        assert entered == expected
