"""The decoder for previews comes nearer to the autoencoder's, and is saved as a model of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))  # training is no part of the installed package

from retouch import AutoencoderKL, AutoencoderTiny
from training import train_preview
from training.networks import make_autoencoder, make_preview_decoder
from training.train_preview import decode, noised
from training.train_vae import psnr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with an autoencoder that was not trained, and latents that are noise."""
    torch.manual_seed(0)
    vae = make_autoencoder(widths=(8, 8, 16, 16))
    for parameter in vae.parameters():
        parameter.data.mul_(1.5)  # or its pictures are all but grey
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "latents").mkdir()
    rows = {key: torch.randn(32, 4, 4, 4).half().numpy() for key in ("whole", "masked")}
    rows["holes"] = np.zeros((32, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "latents" / "00000.npz", captions='["a cat"]', **rows)
    return tmp_path


class Unmeasured:
    """In place of held-out photos, which are a download away."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, network: Any) -> dict[str, float]:
        return {}


def test_it_learns(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_preview, "HeldOut", Unmeasured)
    monkeypatch.setattr(train_preview, "make_preview_decoder", lambda: make_preview_decoder(width=8))
    train_preview.train(state, steps=60)
    trained = AutoencoderTiny.from_pretrained(state / "preview_decoder")
    exact = AutoencoderKL.from_pretrained(state / "vae")
    latents = torch.randn(4, 4, 4, 4)
    torch.manual_seed(0)
    closeness = [
        psnr(decode(network, latents), decode(exact, latents))
        for network in (make_preview_decoder(width=8), trained)
    ]
    assert closeness[1] > closeness[0] + 3
    assert not any(parameter.any() for parameter in trained.encoder.parameters()), "a stub, and known as one"


def test_noise_takes_the_place_of_the_picture_and_adds_nothing() -> None:
    latents = torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    made = noised(latents, torch.tensor([0.0, 0.6, 1.0]), torch.Generator().manual_seed(0))
    assert torch.equal(made[0], latents[0]) and made.std(dim=(1, 2, 3)).allclose(torch.ones(3), atol=0.05)
    for row, kept in ((1, 0.8), (2, 0.0)):
        assert abs((made[row] * latents[row]).mean() - kept) < 0.05
