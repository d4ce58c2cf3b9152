"""Moebius's arithmetic, with functions in place of its three files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retouch.editing.erasers import names_eraser
from retouch.editing.moebius import FILES, moebius_of, signal_levels
from retouch.errors import CheckpointError
from retouch.images.patch_fill import Stopped
from retouch.schedulers.ddim import DDIMScheduler

COLOUR = np.array([0.5, -0.25, 0.0, 0.125], np.float32)[None, :, None, None]  # of latents


def session(run: Any, *names: str) -> Any:
    return SimpleNamespace(
        run=lambda outputs, given: [run(**given)],
        get_inputs=lambda: [SimpleNamespace(name=name) for name in names],
    )


def sessions(seen: dict[str, list[Any]]) -> list[Any]:
    """A model that knows the original: its latents are COLOUR, wherever the noise began."""

    def encode(image: np.ndarray) -> np.ndarray:
        seen.setdefault("image", []).append(image)
        return np.ones((1, 8, 64, 64), np.float32)

    def predict(latent: np.ndarray, timesteps: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        seen.setdefault("unet", []).append((latent, timesteps, input_ids))
        level = signal_levels()[timesteps[0]]
        noise = (latent[:1, :4] - level**0.5 * COLOUR) / (1 - level) ** 0.5
        return np.concatenate([noise + 2, noise + 1])  # guidance of 2 takes it back

    def decode(latent: np.ndarray) -> np.ndarray:
        seen.setdefault("latent", []).append(latent)
        return np.repeat(np.repeat(latent[:, :3] * 0.13025, 8, axis=2), 8, axis=3)

    return [
        session(encode, "image"),
        session(predict, "latent", "timesteps", "input_ids"),
        session(decode, "latent"),
    ]


def test_the_hole_gets_what_the_model_predicts() -> None:
    seen: dict[str, list[Any]] = {}
    pixels = np.full((512, 512, 3), 51, np.uint8)
    hole = np.zeros((512, 512), bool)
    hole[80:160, 160:320] = True
    pixels[hole] = 255
    told: list[Any] = []
    network = moebius_of(sessions(seen), "m")
    out = network.paint(pixels, hole, 3, lambda *done: told.append(done))
    np.testing.assert_allclose(
        out[hole],
        np.rint([(1 + each) * 127.5 for each in (0.5, -0.25, 0)]) * np.ones((hole.sum(), 1)),
        atol=1,
    )
    np.testing.assert_array_equal(out[~hole], pixels[~hole])
    (image,) = seen["image"]
    assert image.shape == (1, 3, 512, 512) and (image[0][:, hole] == 0).all()
    np.testing.assert_allclose(image[0][:, ~hole], -0.6, atol=1e-6)
    latent, timesteps, ids = seen["unet"][0]
    assert latent.shape == (2, 9, 64, 64) and [int(each[1][0]) for each in seen["unet"]] == list(
        range(900, -1, -50)
    )
    np.testing.assert_array_equal(latent[0, 4], hole[::8, ::8])
    np.testing.assert_allclose(latent[:, 5:], 0.13025)
    assert ids.tolist() == [list(range(10, 20)), list(range(10))] and timesteps.dtype == ids.dtype == np.int64
    assert told == [(done, 19) for done in range(20)]


def test_the_schedule_is_that_of_our_scheduler() -> None:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler.from_config({**settings, "clip_sample": False})
    np.testing.assert_allclose(signal_levels(), scheduler.alphas_cumprod.numpy(), rtol=1e-4)


def test_a_seed_gives_the_same_noise_and_false_stops() -> None:
    starts = []
    pixels, hole = np.zeros((64, 64, 3), np.uint8), np.eye(64, dtype=bool)
    for seed in (1, 1, 2):
        seen: dict[str, list[Any]] = {}
        moebius_of(sessions(seen), "m").paint(pixels, hole, seed, lambda *done: True)
        starts.append(seen["unet"][0][0][0, :4])
    assert (starts[0] == starts[1]).all() and (starts[0] != starts[2]).any()
    with pytest.raises(Stopped):
        moebius_of(sessions({}), "m").paint(pixels, hole, 0, lambda *done: False)


def test_other_files_are_refused() -> None:
    wrong = sessions({})[::-1]
    with pytest.raises(CheckpointError, match=r"vae_encoder.onnx of m has the inputs latent"):
        moebius_of(wrong, "m")


def test_a_folder_with_its_files_is_recognised(tmp_path: Path) -> None:
    assert names_eraser("moebius") and not names_eraser(tmp_path)
    for file in FILES:
        (tmp_path / file).write_bytes(b"")
    assert names_eraser(tmp_path) and names_eraser(str(tmp_path))
