"""Train the two UNets: first the regular one with the text encoder, then the inpainting one from it.

The inpainting UNet is the regular one with five more input channels (the mask and the masked picture) whose
weights start at zero. It is trained further with a fixed text encoder, which both UNets share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from retouch.models.unet import UNet2DConditionModel
from retouch.schedulers.ddim import DDIMScheduler
from training.latents import Latents
from training.loop import Interrupt, Loop, Schedule, Share
from training.networks import LATENT_CHANNELS, make_unet
from training.samples import Grid
from training.state import save_folder
from training.text import make_text_encoder, make_tokenizer, tokenize

BATCH = 32
MEASURE_EVERY = 1000
OUTSIDE = 0.1  # the weight of the loss outside the mask, which is kept anyway


def make_scheduler() -> DDIMScheduler:
    """Make a scheduler with zero terminal signal-to-noise ratio: the first step starts from pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # no effect with this spacing, but pipelines warn about 0, which marks old files
    )


class TextToNoise(nn.Module):
    """The UNet and the text encoder, trained as one."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text(tokens)[0]).sample


def train_regular(
    state: Path, steps: int, size: int = 128, device: str = "cpu", interrupt: Interrupt | None = None
) -> None:
    torch.manual_seed(1)
    latents = Latents.load(state)
    tokenizer = make_tokenizer(state / "tokenizer")
    tokens = tokenize(tokenizer, latents.captions)
    network = TextToNoise(make_unet(size), make_text_encoder(tokenizer))
    loop = _loop(state, "regular", network, steps, device, interrupt)
    noise_schedule = make_scheduler().noise_schedule

    def loss_at(step: int, generator: Generator, share: Share) -> Tensor:
        rows = share.of(_batch(len(latents.whole), step))
        whole = latents.whole[rows].float().to(device)
        noise = share.of(_noise(whole, generator)).to(device)
        timesteps = share.of(_stratified(generator))
        noisy = noise_schedule.mix(whole, noise, timesteps)
        words = tokens[latents.caption_of[rows]].to(device)
        with torch.autocast(device, torch.bfloat16):
            answer = share.network(noisy, timesteps.to(device), words)
        return F.mse_loss(answer.float(), noise_schedule.velocity(whole, noise, timesteps))

    grid = Grid(state, "regular", size, device)

    def measure() -> dict[str, float]:
        return grid(loop.average.unet, loop.average.text, tokenizer, make_scheduler())

    with quick_attention(device):
        average = loop.run(loss_at, measure, MEASURE_EVERY)
    save_folder(state / "text_encoder", average.text.save_pretrained)
    save_folder(
        state / "unet_regular", average.unet.save_pretrained
    )  # saved last: it marks the stage as complete


def train_inpainting(
    state: Path, steps: int, size: int = 128, device: str = "cpu", interrupt: Interrupt | None = None
) -> None:
    torch.manual_seed(2)
    latents = Latents.load(state)
    tokenizer = CLIPTokenizer.from_pretrained(state / "tokenizer")
    text = CLIPTextModel.from_pretrained(state / "text_encoder").to(device).eval()
    with torch.no_grad():
        parts = [text(part.to(device))[0] for part in tokenize(tokenizer, latents.captions).split(256)]
    words = torch.cat(parts)
    unet = widen(UNet2DConditionModel.from_pretrained(state / "unet_regular"), size)
    loop = _loop(state, "inpainting", unet, steps, device, interrupt)
    noise_schedule = make_scheduler().noise_schedule

    def loss_at(step: int, generator: Generator, share: Share) -> Tensor:
        rows = share.of(_batch(len(latents.whole), step))
        whole, masked, holes = (
            part[rows].float().to(device) for part in (latents.whole, latents.masked, latents.holes)
        )
        noise = share.of(_noise(whole, generator)).to(device)
        timesteps = share.of(_stratified(generator))
        noisy = torch.cat([noise_schedule.mix(whole, noise, timesteps), holes, masked], 1)
        with torch.autocast(device, torch.bfloat16):
            answer = share.network(noisy, timesteps.to(device), words[latents.caption_of[rows]]).sample
        error = (answer.float() - noise_schedule.velocity(whole, noise, timesteps)).square()
        weight = OUTSIDE + (1 - OUTSIDE) * F.max_pool2d(holes, 3, 1, 1)
        return (error * weight).sum() / (weight.sum() * LATENT_CHANNELS)

    grid = Grid(state, "inpainting", size, device)

    def measure() -> dict[str, float]:
        return grid(loop.average, text, tokenizer, make_scheduler())

    with quick_attention(device):
        average = loop.run(loss_at, measure, MEASURE_EVERY)
    save_folder(state / "unet", average.save_pretrained)


def widen(regular: UNet2DConditionModel, size: int) -> UNet2DConditionModel:
    """Return the network with the mask and masked picture as additional inputs, whose weights are zero."""
    wide = make_unet(size, 2 * LATENT_CHANNELS + 1, regular.config.block_out_channels)
    weights = dict(regular.state_dict())
    first = torch.zeros_like(wide.conv_in.weight)
    first[:, :LATENT_CHANNELS] = weights["conv_in.weight"]
    wide.load_state_dict({**weights, "conv_in.weight": first})
    return wide


@contextmanager
def quick_attention(device: str) -> Iterator[None]:
    """Use unfused attention on a CPU: its backward pass takes a fifth of the fused one's time."""
    if device != "cpu":
        yield
        return
    # Otherwise unfused attention computes in float32 and is no faster.
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _loop(
    state: Path, stage: str, network: nn.Module, steps: int, device: str, interrupt: Interrupt | None
) -> Loop:
    ema = 0.9995 if steps > 20_000 else 0.998
    schedule = Schedule(steps, peak=1e-3, decay=0.5)
    shares = len(os.sched_getaffinity(0)) if device == "cpu" else 1
    return Loop(
        state, stage, network, schedule, ema_decay=ema, device=device, shares=shares, interrupt=interrupt
    )


def _batch(count: int, step: int) -> Tensor:
    """Return the rows of this step; each pass over the samples has its own order."""
    per_pass = count // BATCH
    number, within = divmod(step, per_pass)
    order = torch.randperm(count, generator=Generator().manual_seed(number))
    return order[within * BATCH : (within + 1) * BATCH]


def _noise(like: Tensor, generator: Generator) -> Tensor:
    """Draw the noise of the whole batch, so that it does not depend on the number of shares."""
    return torch.randn(BATCH, *like.shape[1:], generator=generator)


def _stratified(generator: Generator) -> Tensor:
    """Draw timesteps that cover the schedule evenly in every batch."""
    places = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
    return (places * 1000).long().clamp(max=999)
