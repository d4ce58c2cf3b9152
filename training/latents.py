"""Compose the samples for the UNets and encode them once, shard by shard."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retouch.models.autoencoder import AutoencoderKL
from training.data import Composer, Pictures, Sample
from training.loop import Interrupt, Stopped, wait_while_paused
from training.networks import FACTOR
from training.sheets import to_pixels

SHARD = 1024


@dataclass(frozen=True)
class Latents:
    """All samples: `whole` and `masked` pictures (n, 4, h, w), masks (n, 1, h, w), and captions."""

    whole: torch.Tensor
    masked: torch.Tensor
    holes: torch.Tensor
    caption_of: torch.Tensor  # (n,) index into captions
    captions: list[str]

    @classmethod
    def load(cls, state: Path) -> Latents:
        shards = [np.load(path) for path in sorted((state / "latents").glob("*.npz"))]
        texts = [caption for shard in shards for caption in json.loads(str(shard["captions"]))]
        captions = sorted(set(texts))
        index = {caption: number for number, caption in enumerate(captions)}
        return cls(
            *(
                torch.from_numpy(np.concatenate([s[key] for s in shards]))
                for key in ("whole", "masked", "holes")
            ),
            caption_of=torch.tensor([index[text] for text in texts]),
            captions=captions,
        )


@torch.no_grad()
def encode(network: AutoencoderKL, samples: list[Sample], device: str) -> dict[str, torch.Tensor]:
    pixels = to_pixels(np.stack([sample.picture for sample in samples])).to(device)
    holes = torch.from_numpy(np.stack([sample.hole for sample in samples]))[:, None].float()
    both = torch.cat([pixels, pixels * (1 - holes.to(device))])
    with torch.autocast(device, torch.bfloat16):
        parts = [network.encode(part).latent_dist.mode() for part in both.split(16)]
    whole, masked = torch.cat(parts).to("cpu", torch.float16).chunk(2)
    # The pipeline shrinks the mask by nearest neighbour, so training does the same.
    return dict(whole=whole, masked=masked, holes=holes[:, :, ::FACTOR, ::FACTOR].to(torch.uint8))


def prepare(
    state: Path, count: int, size: int = 128, device: str = "cpu", interrupt: Interrupt | None = None
) -> None:
    folder = state / "latents"
    folder.mkdir(exist_ok=True)
    network = AutoencoderKL.from_pretrained(state / "vae").to(device).eval()
    composer = Composer(Pictures.load(state), size, seed=3)
    started = time.monotonic()
    for number in range(-(-count // SHARD)):
        path = folder / f"{number:05d}.npz"
        if path.exists():
            continue
        wait_while_paused(state, interrupt)
        if interrupt and interrupt.requested:
            raise Stopped(f"latents stopped at shard {number}")
        samples = [composer.sample(number * SHARD + within) for within in range(SHARD)]
        parts = [encode(network, samples[at : at + 64], device) for at in range(0, SHARD, 64)]
        arrays = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.savez(file, captions=json.dumps([sample.caption for sample in samples]), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    print(f"latents: {time.monotonic() - started:.0f} s", flush=True)
