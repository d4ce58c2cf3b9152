"""Moebius (arXiv:2606.19195), a small diffusion model for erasing, from the three ONNX files of its export.

It has learned embeddings in place of a prompt. The few lines of DDIM are here in numpy, not those of
`schedulers`, because erasing does without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retouch.editing.networks import Network, in_square
from retouch.errors import CheckpointError
from retouch.images.patch_fill import Stopped

FILES = ("vae_encoder.onnx", "unet.onnx", "vae_decoder.onnx")
_INPUTS = ({"image"}, {"latent", "timesteps", "input_ids"}, {"latent"})
_SIDE, _FACTOR = 512, 8  # the positions in its attention fix the size
_SCALE = 0.13025  # of latents
_STEPS, _TRAINED_STEPS = 20, 1000
_GUIDANCE = 2.0
_OFFSET = 0.0357  # of noise that is the same in a whole channel, as in training
_EMBEDDINGS = 10  # learned ones for erasing; as many for the unguided half follow


def moebius_of(sessions: Sequence[Any], name: str) -> Network:
    """Return the network of its three open files, in the order of FILES."""
    for session, file, expected in zip(sessions, FILES, _INPUTS, strict=True):
        found = {each.name for each in session.get_inputs()}
        if found != expected:
            raise CheckpointError(
                f"{file} of {name} has the inputs {', '.join(sorted(found))}. Those of Moebius are "
                f"{', '.join(sorted(expected))}. Use the files of its ONNX export.",
                parameter="name",
            )
    return Network("Moebius", _SIDE, functools.partial(_paint, *sessions), is_seeded=True)


def _paint(
    encoder: Any,
    unet: Any,
    decoder: Any,
    pixels: np.ndarray,
    hole: np.ndarray,
    seed: int,
    tell: Callable[[int, int], Any],
) -> np.ndarray:
    square, keep, back = in_square(pixels, hole, _SIDE)
    masked = ((square / 127.5 - 1) * keep[..., None]).transpose(2, 0, 1)[None]
    (moments,) = encoder.run(None, {"image": np.ascontiguousarray(masked, np.float32)})
    given = moments[:, :4] * _SCALE  # the mean; no sample is drawn
    repaint = 1 - keep[None, None, ::_FACTOR, ::_FACTOR]
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal(given.shape) + _OFFSET * generator.standard_normal((1, 4, 1, 1))
    ids = np.arange(2 * _EMBEDDINGS).reshape(2, _EMBEDDINGS)[::-1].copy()  # the unguided half first

    def predict(latents: np.ndarray, timestep: int) -> np.ndarray:
        channels = np.concatenate([latents, repaint, given], axis=1).astype(np.float32)
        (noise,) = unet.run(
            None,
            {
                "latent": channels.repeat(2, axis=0),
                "timesteps": np.full(2, timestep, np.int64),
                "input_ids": ids.astype(np.int64),
            },
        )
        return noise[:1] + _GUIDANCE * (noise[1:] - noise[:1])

    stride = _TRAINED_STEPS // _STEPS
    # It was made for a strength just below 1, which leaves out the first step.
    timesteps = list(range(_TRAINED_STEPS - 2 * stride, -1, -stride))
    signal = signal_levels()
    for done, timestep in enumerate(timesteps):
        if tell(done, len(timesteps)) is False:
            raise Stopped
        level, after = signal[timestep], signal[timestep - stride] if timestep else 1.0
        noise = predict(latents, timestep)
        original = (latents - (1 - level) ** 0.5 * noise) / level**0.5
        latents = after**0.5 * original + (1 - after) ** 0.5 * noise
    (painted,) = decoder.run(None, {"latent": (latents / _SCALE).astype(np.float32)})
    tell(len(timesteps), len(timesteps))
    return back((painted[0].transpose(1, 2, 0) + 1) * 127.5)


def signal_levels() -> np.ndarray:
    """Return how much of the original is left at each timestep of training, as a part of the variance."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, _TRAINED_STEPS) ** 2
    levels: np.ndarray = np.cumprod(1 - betas)
    return levels
