"""Kandinsky 2.2's decoder: pictures from image embeddings, which its prior makes of prompts.

Its oddities are converted here: the UNet predicts a variance besides the noise, the mask that it sees means
1 = keep and stands behind the masked picture, and the hole is a little larger in the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.images.processor import VaeImageProcessor
from retouch.pipelines.bundle import Bundle
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.request import Request, argument
from retouch.pipelines.vae import guarded
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.guidance import Guidance

if TYPE_CHECKING:
    from typing_extensions import Self

# The latents around one in the hole that belong to it, too: (rows down, columns right). Two corners do not.
_NEIGHBOURS = ((0, 0), (-1, -1), (-1, 0), (0, -1), (0, 1), (1, 0), (1, 1))

Embeds = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class EmbedsRequest(Request):
    """A request with image embeddings in place of a prompt."""

    image_embeds: Embeds | None = argument(
        None, "What to paint, a row for each picture; the prior makes them."
    )
    negative_image_embeds: Embeds | None = argument(
        None, "What to stay away from; the prior makes them too, see its get_zero_embed."
    )

    @property
    def prompts(self) -> int:
        return len(joined(self.image_embeds))

    def check_texts(self) -> None:
        for name in ("image_embeds", "negative_image_embeds"):
            value = getattr(self, name)
            parts = value if isinstance(value, list | tuple) else [value]
            if value is not None and not all(isinstance(part, Tensor) and part.ndim == 2 for part in parts):
                raise InputError(
                    f"{name} takes a tensor (pictures, width) or a list of them. KandinskyV22PriorPipeline "
                    "makes such embeddings of prompts."
                )

    def check(self, size_factor: int, tensor_names: Collection[str] = ("latents",)) -> None:
        super().check(size_factor, tensor_names)
        negative = joined(self.negative_image_embeds)
        if negative is None:
            if self.guidance_scale > 1:
                raise InputError(
                    f"guidance_scale={self.guidance_scale} needs negative_image_embeds to push away from. "
                    "Give those that the prior returns beside image_embeds, or guidance_scale=1."
                )
        elif len(negative) not in (1, self.prompts):
            raise InputError(
                f"negative_image_embeds has {len(negative)} rows and image_embeds {self.prompts}. Give one "
                "row for all, or one for each."
            )


def joined(embeds: Any) -> Any:
    """Embeddings as one tensor, also when they are a list."""
    return torch.cat(list(embeds)) if isinstance(embeds, list | tuple) else embeds


def grow(repaint: Tensor) -> Tensor:
    """The hole with the latents next to it, except above to the right and below to the left of each."""
    height, width = repaint.shape[-2:]
    padded = torch.nn.functional.pad(repaint, (1, 1, 1, 1))
    shifted = [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in _NEIGHBOURS]
    return torch.stack(shifted).amax(dim=0)


@dataclass
class LearnedVarianceGuidance(Guidance):
    """Guides the noise; of the variance, which is predicted besides, takes the positive side's.

    A scheduler that does not use a predicted variance gets the noise alone.
    """

    keeps_variance: bool = True

    def combine(self, prediction: Tensor) -> Tensor:
        noise, variance = prediction.chunk(2, dim=1)
        noise = super().combine(noise)
        if not self.keeps_variance:
            return noise
        return torch.cat([noise, variance.chunk(2)[-1] if self.active else variance], dim=1)


def uses_variance(scheduler: Any) -> bool:
    """Whether a scheduler takes a predicted variance behind the noise.

    Its config alone does not tell: it keeps the settings of the scheduler that it was made from.
    """
    settings = getattr(scheduler, "settings", None)
    if settings is None:  # a scheduler of another library
        knows = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
        settings = scheduler.config if knows else {}
    return settings.get("variance_type") in ("learned", "learned_range")


class Kandinsky22(Pipeline):
    """The family; kandinsky22_names.py gives it its fronts."""

    component_names: ClassVar[tuple[str, ...]] = ("unet", "scheduler", "movq")
    listenable: ClassVar = {"image_embeds": ("added_cond_kwargs", "image_embeds")}
    listenable_negatives: ClassVar = {"negative_image_embeds": ("added_cond_kwargs", "image_embeds")}
    channel_names: ClassVar = {"masked_image": slice(0, -1), "mask_image": slice(-1, None)}
    mask_name: ClassVar = "mask_image"
    samples_latents = False
    keeps_original = True

    movq: Any

    def __init__(self, **components: Any) -> None:
        super().__init__(**components)
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=self.latent_channels,
            resample="bicubic",
            reducing_gap=1,
        )

    @property
    def vae(self) -> Any:
        """The autoencoder, which this family calls its movq."""
        return self.movq

    @vae.setter
    def vae(self, movq: Any) -> None:
        self.movq = movq

    @classmethod
    def from_pipe(cls, pipeline: Bundle, **components: Any) -> Self:
        """The same parts behind another front; nothing is copied. `vae` is a name of `movq`."""
        if "vae" in components:
            components["movq"] = components.pop("vae")
        return super().from_pipe(pipeline, **components)

    @property
    def movq_scale_factor(self) -> int:
        """Pixels for each latent along a side."""
        return self.vae_scale_factor

    def check(self, request: Any) -> None:
        config, latent = self.unet.config, self.latent_channels
        if config.in_channels not in (latent, 2 * latent + 1) or config.out_channels != 2 * latent:
            raise InputError(
                f"The UNet takes {config.in_channels} channels and predicts {config.out_channels}. It must "
                f"take {latent} (a regular decoder) or {2 * latent + 1} (one for inpainting), and predict "
                f"{2 * latent}: noise and variance. Use a decoder of Kandinsky 2.2."
            )
        if self.joins_mask and request.mask_image is None:
            raise InputError(
                f"This is an inpainting decoder (its UNet takes {config.in_channels} channels: latents, "
                "masked picture and mask), and no mask_image was given. Use AutoPipelineForInpainting, or "
                f"load the regular decoder for {self.task.name}."
            )
        self._check_embeds(request)

    def _check_embeds(self, request: Any) -> None:
        expected = self.unet.config.encoder_hid_dim
        for name in ("image_embeds", "negative_image_embeds"):
            embeds = joined(getattr(request, name))
            if embeds is not None and embeds.shape[-1] != expected:
                raise InputError(
                    f"{name} is {embeds.shape[-1]} wide, and this UNet reads embeddings of width {expected}. "
                    "Make it with the prior that belongs to this decoder."
                )

    def embeds(self, run: PictureRun) -> tuple[Tensor, Tensor | None]:
        """The image embeddings of both sides of the guidance."""
        request: Any = run.request
        return joined(request.image_embeds), joined(request.negative_image_embeds)

    def condition(self, run: PictureRun) -> Conditioning:
        def inputs(embeds: Tensor) -> dict[str, Any]:
            rows = run.spread(embeds.to(self.device, self.unet.dtype))
            return {"added_cond_kwargs": {"image_embeds": rows}}

        positive, negative = self.embeds(run)
        guided = run.guidance.active and negative is not None
        return Conditioning(inputs(positive), inputs(negative) if guided else None)  # type: ignore[arg-type]

    def guidance(self, request: Request) -> Guidance:
        scale = request.guidance_scale
        return LearnedVarianceGuidance(
            scale,
            active=self.uses_guidance(scale),
            keeps_variance=uses_variance(self.scheduler),
            interval=request.guidance_interval,
        )

    def encode(self, pixels: Tensor, generator: Any) -> Tensor:
        """Latents as the encoder makes them, unscaled; nothing is drawn."""
        with self.placement.using("movq") as movq:
            return guarded(movq, lambda model: model.encode(pixels.to(model.dtype)).latents).to(pixels.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        with self.placement.using("movq") as movq:
            return guarded(
                movq, lambda model: model.decode(latents.to(model.dtype), force_not_quantize=True).sample
            )

    def latent_mask(self, mask: Tensor) -> Tensor:
        return grow(mask)

    def shown_mask(self, mask: Tensor) -> Tensor:
        return 1 - mask

    def joined_channels(self, run: PictureRun, mask: Tensor, original: Tensor | None) -> Tensor:
        """The picture's latents without those in the hole, then the mask."""
        assert original is not None  # as keeps_original says
        kept = self.shown_mask(mask)
        return torch.cat([original * kept, kept], dim=1)
