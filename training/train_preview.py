"""Train the preview decoder to approximate the autoencoder's decoder in less time.

Half of its training latents are latents of pictures. The other half have added noise, like the latents
between the steps of a run.

`python -m training.train_preview --state FOLDER` trains it alone; it needs the autoencoder and the latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from retouch.kernels import optimize
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.tiny_autoencoder import AutoencoderTiny
from training.data import Composer, Pictures
from training.latents import Latents
from training.loop import Interrupt, Loop, Schedule, Share, Stopped
from training.networks import make_preview_decoder
from training.sheets import to_bytes, to_pixels, write_sheet
from training.state import default_state, save_folder
from training.train_vae import psnr, reconstruction_loss

STEPS = 1_600
BATCH = 16


def train(
    state: Path, steps: int = STEPS, size: int = 128, device: str = "cpu", interrupt: Interrupt | None = None
) -> None:
    torch.manual_seed(0)
    whole = Latents.load(state).whole
    exact = AutoencoderKL.from_pretrained(state / "vae").to(device, torch.bfloat16)
    optimize(exact.eval().requires_grad_(False))
    loop = Loop(
        state,
        "preview_decoder",
        make_preview_decoder().to(memory_format=torch.channels_last),
        Schedule(steps, peak=2e-3, decay=0.7),
        weight_decay=1e-4,
        ema_decay=0.995,
        device=device,
        interrupt=interrupt,
    )

    def loss_at(step: int, generator: Generator, _: Share) -> Tensor:
        clean = whole[torch.randint(len(whole), (BATCH,), generator=generator)].float()
        latents = noised(clean, torch.rand(BATCH, generator=generator), generator)
        latents[::2] = clean[::2]
        latents = latents.to(device)
        with torch.autocast(device, torch.bfloat16):
            decoded = loop.network.decode(latents).sample.float()
        return reconstruction_loss(decoded, decode(exact, latents))

    measured = HeldOut(state, size, device)
    network = loop.run(loss_at, lambda: measured(loop.average), measure_every=200)
    save_folder(state / "preview_decoder", network.float().save_pretrained)
    print("preview_decoder", measured(network), flush=True)


def noised(latents: Tensor, levels: Tensor, generator: Generator) -> Tensor:
    """Add noise as in a run; `levels` is its share: 0 is no noise, 1 only noise."""
    level = levels.view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)
    return (1 - level**2).sqrt() * latents + level * noise


@torch.no_grad()
def decode(network: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decode to pixels, clamped to the visible range."""
    return network.decode(latents.to(network.dtype)).sample.float().clamp(-1, 1)


class HeldOut:
    """The distance to the autoencoder's own decoder on held-out pictures, and a sheet of them."""

    def __init__(self, state: Path, size: int, device: str, count: int = 16):
        composer = Composer(Pictures.load(state, held_out=True), size, seed=6)
        pixels = to_pixels(np.stack([composer.picture(number) for number in range(count)])).to(device)
        vae = AutoencoderKL.from_pretrained(state / "vae").to(device).eval()
        with torch.no_grad():
            clean = vae.encode(pixels).latent_dist.mode().cpu()
        generator = Generator().manual_seed(7)
        self.latents = {
            level: noised(clean, torch.full((count,), level), generator).to(device)
            for level in (0.0, 0.3, 0.7)
        }
        self.exact = {level: decode(vae, latents) for level, latents in self.latents.items()}
        self.sheet = state / "sheets" / "preview_decoder.png"

    def __call__(self, network: AutoencoderTiny) -> dict[str, float]:
        network = network.float().eval()
        found = {level: decode(network, latents) for level, latents in self.latents.items()}
        rows = [pixels for level in found for pixels in (self.exact[level], found[level])]
        write_sheet(self.sheet, to_bytes(torch.cat(rows)), columns=len(rows[0]))
        return {f"psnr_{level}": round(psnr(found[level], self.exact[level]), 2) for level in found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=default_state(), help="the state folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--size", type=int, default=128, help="side of the training pictures")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    try:
        train(given.state, given.steps, given.size, given.device, Interrupt())
    except Stopped as stopped:
        print(stopped, flush=True)


if __name__ == "__main__":
    main()
