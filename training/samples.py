"""Sample pictures painted during training, with known names on unseen backgrounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel
from retouch.schedulers.ddim import DDIMScheduler
from training.data import Composer, Pictures
from training.networks import FACTOR, LATENT_CHANNELS
from training.sheets import to_bytes, to_pixels, write_sheet
from training.text import tokenize
from training.vocabulary import NAMES

STEPS, GUIDANCE = 12, 2.5
PROMPTS = (*(f"a {name.word}" for name in NAMES[::5]), *[""] * 10)


@torch.no_grad()
def paint(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    prompts: list[str],
    noise: Tensor,
    channels: Tensor | None = None,
) -> Tensor:
    """Paint latents for the prompts; `channels` are the mask and masked picture for an inpainting UNet."""
    device = noise.device
    words = text(tokenize(tokenizer, [*prompts, *[""] * len(prompts)]).to(device))[0]
    plan = scheduler.plan(STEPS, device=device)
    latents = noise
    for step in plan:
        given = latents if channels is None else torch.cat([latents, channels], 1)
        with torch.autocast(device.type, torch.bfloat16):
            answer = unet(torch.cat([given, given]), step.timestep, words).sample.float()
        told, untold = answer.chunk(2)
        latents = plan.advance(untold + GUIDANCE * (told - untold), step, latents)
    return latents


class Grid:
    """A PNG sheet of pictures, painted with the same prompts, backgrounds and noise at every call."""

    def __init__(self, state: Path, stage: str, size: int, device: str):
        self.file = state / "sheets" / f"{stage}.png"
        self.vae = AutoencoderKL.from_pretrained(state / "vae").to(device).eval()
        composer = Composer(Pictures.load(state, held_out=True), size, seed=4)
        backgrounds = [composer.background(composer.random(number)) for number in range(len(PROMPTS))]
        self.pixels = to_pixels(np.stack(backgrounds)).to(device)
        self.hole = torch.zeros(len(PROMPTS), 1, size, size, device=device)
        self.hole[..., size // 8 : -size // 8, size // 8 : -size // 8] = 1
        self.noise = torch.randn(
            len(PROMPTS),
            LATENT_CHANNELS,
            size // FACTOR,
            size // FACTOR,
            generator=Generator().manual_seed(5),
        ).to(device)

    @torch.no_grad()
    def __call__(
        self,
        unet: UNet2DConditionModel,
        text: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
    ) -> dict[str, float]:
        channels = None
        if unet.config.in_channels > LATENT_CHANNELS:
            masked = self.vae.encode(self.pixels * (1 - self.hole)).latent_dist.mode()
            channels = torch.cat([self.hole[..., ::FACTOR, ::FACTOR], masked], 1)
        latents = paint(unet, text, tokenizer, scheduler, list(PROMPTS), self.noise, channels)
        painted = torch.cat([self.vae.decode(part).sample for part in latents.split(8)])
        if channels is not None:
            painted = painted * self.hole + self.pixels * (1 - self.hole)
        write_sheet(self.file, to_bytes(painted), columns=8)
        return {}
