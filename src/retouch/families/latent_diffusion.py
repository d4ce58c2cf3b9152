"""The common part of the Stable Diffusion families: an AutoencoderKL, and a UNet of 4 or 9 input channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.autoencoder import decode_latents, encode_pixels
from retouch.families.call import Call, Task, check_texts
from retouch.families.family import Family, Parts, refuse_wrong_width


class LatentDiffusion(Family):
    """Base of the Stable Diffusion families."""

    tensors: ClassVar = {"prompt_embeds": ("encoder_hidden_states",)}
    negative_tensors: ClassVar = {"negative_prompt_embeds": ("encoder_hidden_states",)}
    takes_adapters = True
    # Whether a VAE whose config has force_upcast works in float32.
    honours_force_upcast: ClassVar[bool] = False

    def is_guided(self, parts: Parts, scale: float) -> bool:
        """Return False for a distilled model too: it takes the scale as an input."""
        return scale > 1 and parts.part("unet").config.time_cond_proj_dim is None

    def check(self, parts: Parts, call: Call, task: Task) -> None:
        check_texts(call)
        refuse_wrong_width(parts, call, task, self.title)
        expected = parts.part("unet").config.cross_attention_dim
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(call, name)
            if embeds is not None and isinstance(expected, int) and embeds.shape[-1] != expected:
                raise InputError(
                    f"{name} has the width {embeds.shape[-1]}, and this UNet reads text of width {expected}. "
                    "Make it with the encode_prompt of a pipeline of this family.",
                    parameter=name,
                )

    def encode(self, parts: Parts, pixels: Tensor, generator: Any) -> Tensor:
        with parts.using("vae") as vae:
            upcast = self.honours_force_upcast and vae.config.force_upcast
            return encode_pixels(vae, parts.layout, pixels, generator, upcast=upcast)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        with parts.using("vae") as vae:
            # bfloat16 has float32's range, so only float16 needs the larger type here.
            upcast = self.honours_force_upcast and vae.config.force_upcast and vae.dtype == torch.float16
            return decode_latents(vae, parts.layout, latents, upcast=upcast)


def guidance_inputs(parts: Parts, rows: int, scale: float, like: Tensor) -> dict[str, Tensor]:
    """Return the guidance scale as a distilled model's input; nothing for other models."""
    width = parts.part("unet").config.time_cond_proj_dim
    if width is None:
        return {}
    return {"timestep_cond": guidance_embedding(torch.full((rows,), scale - 1), width).to(like)}


def guidance_embedding(weights: Tensor, width: int) -> Tensor:
    """Return sinusoids of guidance scales: (rows, width)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (1000.0 * weights.float())[:, None] * frequencies[None]
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
