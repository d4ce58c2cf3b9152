"""What the Stable Diffusion families share: an AutoencoderKL, and a UNet of 4 or 9 input channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.pipelines.adapters import Adapters
from retouch.pipelines.components import plain
from retouch.pipelines.ip_adapters import IPAdapters
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.request import Request
from retouch.pipelines.text import guidance_embedding
from retouch.pipelines.textual_inversion import TextualInversion
from retouch.pipelines.vae import decode_latents, encode_pixels


class LatentDiffusion(Adapters, TextualInversion, IPAdapters, Pipeline):
    """Base of the Stable Diffusion families."""

    listenable: ClassVar = {"prompt_embeds": ("encoder_hidden_states",)}
    listenable_negatives: ClassVar = {"negative_prompt_embeds": ("encoder_hidden_states",)}

    # Whether a VAE whose config asks for it works in float32 however it was loaded.
    heeds_force_upcast = False

    @property
    def samples_latents(self) -> bool:  # type: ignore[override]
        """A tiny autoencoder answers with latents, others with a distribution of them."""
        return type(plain(self.vae)).__name__ != "AutoencoderTiny"

    @property
    def keeps_original(self) -> bool:  # type: ignore[override]
        """A regular UNet sees no mask, so the loop holds the rest of the picture for it."""
        return not self.joins_mask

    def uses_guidance(self, scale: float) -> bool:
        """A distilled model takes the scale as an input and needs no second evaluation."""
        return scale > 1 and self.unet.config.time_cond_proj_dim is None

    def check(self, request: Request) -> None:
        width, latent = self.unet.config.in_channels, self.latent_channels
        if width not in (latent, 2 * latent + 1):
            raise InputError(
                f"The UNet takes {width} input channels. Supported are {latent} (a regular checkpoint) and "
                f"{2 * latent + 1} (an inpainting one)."
            )
        if self.joins_mask and request.mask_image is None:
            raise InputError(
                f"This is an inpainting checkpoint (its UNet takes {width} channels: latents, mask and "
                "masked picture), and no mask_image was given. Use AutoPipelineForInpainting, or load a "
                f"regular checkpoint for {self.task.name}."
            )

        expected = self.unet.config.cross_attention_dim
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(request, name)
            if embeds is not None and isinstance(expected, int) and embeds.shape[-1] != expected:
                raise InputError(
                    f"{name} is {embeds.shape[-1]} wide, and this UNet reads text of width {expected}. Make "
                    "it with the encode_prompt of a pipeline of this family."
                )
        self.check_ip_adapters(request)

    def guidance_input(self, rows: int, scale: float, like: Tensor) -> dict[str, Tensor]:
        """The scale as a distilled model wants it; nothing for the others."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return {}
        return {"timestep_cond": guidance_embedding(torch.full((rows,), scale - 1), width).to(like)}

    def encode(self, pixels: Tensor, generator: Any) -> Tensor:
        upcast = self.heeds_force_upcast and self.vae.config.force_upcast
        with self.placement.using("vae") as vae:
            return encode_pixels(vae, pixels, generator, upcast=upcast)

    def decode(self, latents: Tensor) -> Tensor:
        # bfloat16 has float32's range, so only float16 needs the larger type here.
        upcast = self.heeds_force_upcast and self.vae.config.force_upcast and self.vae.dtype == torch.float16
        with self.placement.using("vae") as vae:
            return decode_latents(vae, latents, upcast=upcast)

    def joined_channels(self, run: PictureRun, mask: Tensor, original: Tensor | None) -> Tensor:
        """The mask, then the masked picture."""
        return torch.cat([mask, run.masked_latents()], dim=1)
