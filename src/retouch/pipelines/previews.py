"""What a run is at, roughly and next to free: by a tiny decoder, or by a linear map from latents to colours.

Nothing of it reaches a result. Frames of a whole run are recording.py's.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.pipelines.components import plain
from retouch.pipelines.vae import decode_latents


def preview(pipeline: Any, latents: Tensor) -> Tensor:
    """Pixels in [-1, 1] of the latents of a run, by the pipeline's preview decoder where it has one."""
    if pipeline.preview_decoder is None:
        return linear_colours(pipeline, latents)
    with pipeline.placement.using("preview_decoder") as decoder:
        return decode_latents(decoder, latents).float().clamp(-1, 1)


def check_preview_decoder(decoder: Any, channels: int, factor: int) -> None:
    """Refuse a decoder of other latents than these: so many channels, each for so many pixels a side."""
    accepted = (
        f"It takes an AutoencoderTiny of {channels} channels and {factor} pixels a side for each latent, as "
        "this pipeline's are"
    )
    if type(plain(decoder)).__name__ != "AutoencoderTiny":
        raise InputError(
            f"preview_decoder is a {type(decoder).__name__}. {accepted}, or None for a linear map. Load one "
            "with AutoencoderTiny.from_pretrained."
        )
    config: Any = decoder.config
    has = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    if (config.latent_channels, has) != (channels, factor):
        raise InputError(
            f"preview_decoder decodes latents of {config.latent_channels} channels and {has} pixels a side. "
            f"{accepted}. Load the one that was made for this family of checkpoints, or give None."
        )


# The maps of the published VAEs, by the factor that their latents are scaled with: a row for each latent, to
# red, green and blue. Users found them (for SD torridgristle, for SDXL StAlKeR7779), as InvokeAI has them.
_PUBLISHED_WIDTHS = (128, 256, 512, 512)
_PUBLISHED = {
    0.18215: (
        (0.3444, 0.1385, 0.0670),
        (0.1247, 0.4027, 0.1494),
        (-0.3192, 0.2513, 0.2103),
        (-0.1307, -0.1874, -0.7445),
    ),
    0.13025: (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    ),
}
_maps: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()


def linear_colours(pipeline: Any, latents: Tensor) -> Tensor:
    """Pixels in [-1, 1] by a linear map of each latent: of a published VAE, or fitted to the pipeline's."""
    vae, factor = pipeline.vae, pipeline.vae_scale_factor
    if vae not in _maps:
        published = _published_colours(vae)
        _maps[vae] = _fit_colours(pipeline) if published is None else published
    weights = _maps[vae]
    channels = latents.float().cpu()
    flat = torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)
    colours = torch.einsum("nchw,cr->nrhw", flat, weights).clamp(-1, 1)
    return torch.nn.functional.interpolate(colours, scale_factor=factor, mode="nearest")


def _published_colours(vae: Any) -> Tensor | None:
    config: Any = getattr(vae, "config", None)
    factor = getattr(config, "scaling_factor", None)
    if factor not in _PUBLISHED or tuple(config.block_out_channels) != _PUBLISHED_WIDTHS:
        return None
    return torch.tensor([*_PUBLISHED[factor], (0.0, 0.0, 0.0)])


def _fit_colours(pipeline: Any) -> Tensor:
    """Least squares from latents to the mean colours of their pixels, over smooth random pictures."""
    factor, side = pipeline.vae_scale_factor, 16
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(-1, 1, (8, 3, 5, 5)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(coarse, size=(side * factor,) * 2, mode="bilinear")
    source = torch.Generator().manual_seed(0)
    latents = pipeline.encode(pixels.to(pipeline.device, pipeline.dtype), source).float().cpu()
    colours = torch.nn.functional.avg_pool2d(pixels, factor)
    rows = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    targets = colours.movedim(1, -1).reshape(-1, 3)
    # Directions in which these latents hardly vary are left out: noise must not be amplified along them.
    fit = torch.linalg.lstsq(rows.double(), targets.double(), rcond=1e-3, driver="gelsd")
    return fit.solution.float()
