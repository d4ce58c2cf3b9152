"""Train the autoencoder between pixels and latents, then whiten its latents.

Training starts with colour. In photos, brightness varies four times as much as colour. Trained on photos from
the start, the four channels encode only details of brightness, and after a thousand steps everything is still
grey. A few hundred steps on blocks of random colours, where red, green and blue vary equally, give each
colour a channel. Photos then keep red and blue. Green varies least in photos, so a few blocks among the
photos keep it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from retouch.models.autoencoder import AutoencoderKL
from training.data import Composer, Pictures
from training.loop import Interrupt, Loop, Schedule, Share
from training.networks import make_autoencoder
from training.sheets import to_bytes, to_pixels, write_sheet
from training.state import save_folder

BATCH = 8
SMALL = 64  # side of the crops in the first part, where a step takes a quarter of the work
SMALL_SHARE = 0.8  # share of the steps with small crops
COLOUR_FIRST = 1000  # first steps, on blocks of random colours only
BLOCKS = 1  # blocks in each later batch of small crops; without them green is lost again
NOISE = 0.1  # noise on the latents in training; the posterior's own variance is not learnt


def train(
    state: Path, steps: int, size: int = 128, device: str = "cpu", interrupt: Interrupt | None = None
) -> None:
    torch.manual_seed(0)
    composer = Composer(Pictures.load(state), size, seed=1)
    loop = Loop(
        state,
        "vae",
        make_autoencoder(size),
        Schedule(steps, peak=1.5e-3, decay=0.5),
        betas=(0.9, 0.98),
        weight_decay=1e-3,
        ema_decay=0.998,
        device=device,
        interrupt=interrupt,
    )

    def encode_and_decode(pixels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with torch.autocast(device, torch.bfloat16):
            mean = loop.network.encode(pixels).latent_dist.mode()
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            decoded = loop.network.decode(mean + NOISE * noise).sample
        return decoded.float(), mean.float()

    def loss_at(step: int, generator: Generator, _: Share) -> Tensor:
        if step < COLOUR_FIRST:
            pixels = random_blocks(BATCH, generator)
            decoded, _ = encode_and_decode(pixels.to(device), generator)
            # Equal weight for all axes of colour; with unequal weights the weakest is learnt late.
            return F.avg_pool2d(decoded - pixels.to(device), 8).square().mean()
        numbers = range(step * BATCH, (step + 1) * BATCH)
        pixels = to_pixels(np.stack([composer.picture(number) for number in numbers]))
        if step < SMALL_SHARE * steps:
            top, left = torch.randint(size - SMALL + 1, (2,), generator=generator).tolist()
            pixels = pixels[BLOCKS:, :, top : top + SMALL, left : left + SMALL]
            pixels = torch.cat([random_blocks(BLOCKS, generator), pixels])
        pixels = pixels.to(device)
        decoded, mean = encode_and_decode(pixels, generator)
        return reconstruction_loss(decoded, pixels) + 1e-4 * mean.square().mean()

    measured = HeldOut(state, size, device)
    network = loop.run(loss_at, lambda: measured(loop.average), measure_every=500)
    whiten(network, composer, device)
    save_folder(state / "vae", network.float().save_pretrained)
    print("vae", measured(network), flush=True)


def random_blocks(count: int, generator: Generator) -> Tensor:
    colours = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(colours, size=(SMALL, SMALL), mode="nearest")


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    error = decoded - pixels
    return (
        0.5 * error.abs().mean()
        + 4 * error.square().mean()
        + 3 * colour_loss(decoded, pixels)
        + 0.25 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        + 0.1 * (1 - similarity(decoded, pixels))
    )


def colour_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Return the error of the mean colour of 8x8 pixels, with six times the weight for hue and saturation."""
    error = F.avg_pool2d(decoded - pixels, 8)
    return error.square().mean() + 5 * (error - error.mean(1, keepdim=True)).square().mean()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM over windows of 7x7 pixels."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 7, 2)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 4e-4) * (2 * covariance + 3.6e-3)
    return (top / ((mean_a**2 + mean_b**2 + 4e-4) * (variance_a + variance_b + 3.6e-3))).mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean PSNR over pictures in dB, for pixels from -1 to 1."""
    return (-10 * ((a - b) / 2).square().mean((1, 2, 3)).log10()).mean().item()


class HeldOut:
    """The reconstruction of held-out pictures: PSNR, the share of red and green kept, and a sheet."""

    def __init__(self, state: Path, size: int, device: str, count: int = 32):
        composer = Composer(Pictures.load(state, held_out=True), size, seed=2)
        photos = [composer.background(composer.random(number)) for number in range(count)]
        objects = [composer.picture(number, plain=0) for number in range(count, 2 * count)]
        self.pixels = to_pixels(np.stack(photos + objects)).to(device)
        self.count = count
        self.sheet = state / "sheets" / "vae.png"

    @torch.no_grad()
    def __call__(self, network: AutoencoderKL) -> dict[str, float]:
        parts = [
            network.decode(network.encode(part).latent_dist.mode()).sample for part in self.pixels.split(8)
        ]
        decoded = torch.cat(parts).clamp(-1, 1)
        n = self.count
        rows = [self.pixels[:16], decoded[:16], self.pixels[n : n + 16], decoded[n : n + 16]]
        write_sheet(self.sheet, to_bytes(torch.cat(rows)), columns=16)
        return {
            "psnr_photos": round(psnr(decoded[:n], self.pixels[:n]), 2),
            "psnr_objects": round(psnr(decoded[n:], self.pixels[n:]), 2),
            "red_kept": round(colour_kept(decoded, self.pixels, 0), 3),
            "green_kept": round(colour_kept(decoded, self.pixels, 1), 3),
        }


def colour_kept(decoded: Tensor, pixels: Tensor, channel: int) -> float:
    """Return the share of a strong colour that is kept: 1 is all of it, 0 is grey."""
    before, after = (_excess(F.avg_pool2d(picture, 4), channel) for picture in (pixels, decoded))
    strong = before > 0.3
    return (after[strong].mean() / before[strong].mean()).item()


def _excess(picture: Tensor, channel: int) -> Tensor:
    others = [index for index in range(3) if index != channel]
    return picture[:, channel] - picture[:, others].amax(1)


@torch.no_grad()
def whiten(network: AutoencoderKL, composer: Composer, device: str, count: int = 256) -> None:
    """Fold the mean and spread of the latents into the neighbouring 1x1 convolutions."""
    pictures = [composer.picture(10**9 + number) for number in range(count)]
    parts = to_pixels(np.stack(pictures)).to(device).split(8)
    latents = torch.cat([network.encode(part).latent_dist.mode() for part in parts])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    before, after = network.quant_conv, network.post_quant_conv
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    before.weight[:channels] /= spread[:, None, None, None]
    # Without variance, a sample of the posterior is its mean.
    before.weight[channels:] = 0
    before.bias[channels:] = -30.0
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= spread[None, :, None, None]
