"""Kandinsky 2.2's decoder: pictures from image embeddings, which its prior makes from prompts.

Its peculiarities are converted here: the UNet predicts a variance beside the noise, its mask channel means 1
= keep and comes after the masked picture, and the mask grows a little in the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.autoencoder import with_float32_fallback
from retouch.families.call import Arguments, Call, Task, argument, check_text
from retouch.families.family import Family, Parts, Size
from retouch.families.latents import LatentLayout
from retouch.sampling.conditioning import Conditioning, spread
from retouch.sampling.guidance import Guidance

# The latents around one in the mask that join it: (rows down, columns right). Two corners do not.
_NEIGHBOURS = ((0, 0), (-1, -1), (-1, 0), (0, -1), (0, 1), (1, 0), (1, 1))

Embeds = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class EmbedsArguments(Arguments):
    """The arguments that only the decoder has: image embeddings in place of a prompt."""

    image_embeds: Embeds | None = argument(
        None, "What to paint: embeddings from the prior, a row for each picture."
    )
    negative_image_embeds: Embeds | None = argument(
        None, "What to stay away from: embeddings from the prior too, see its get_zero_embed."
    )


@dataclass(frozen=True)
class CombinedArguments(Arguments):
    """The arguments that only the decoder with its prior has."""

    prior_guidance_scale: float = argument(4.0, "How strongly the prior follows the prompt.")
    prior_num_inference_steps: int = argument(25, "Denoising steps of the prior.")
    prior_callback_on_step_end: Callable[..., Mapping[str, Any]] | None = argument(
        None, "As callback_on_step_end, after each step of the prior."
    )
    prior_callback_on_step_end_tensor_inputs: Sequence[str] = argument(
        ("latents",), "Names of the tensors that the prior's callback gets."
    )
    prior_latents: Tensor | None = None  # those of `latents` that are the prior's


@dataclass(frozen=True)
class ImageEmbeds:
    """Image embeddings of a call, a row for each picture."""

    positive: Tensor
    negative: Tensor | None


@dataclass
class LearnedVarianceGuidance(Guidance):
    """Guides the noise, and takes the positive half's variance, which is predicted behind it.

    A scheduler that does not use a predicted variance gets the noise alone.
    """

    keeps_variance: bool = True

    def combine(self, prediction: Tensor) -> Tensor:
        noise, variance = prediction.chunk(2, dim=1)
        noise = super().combine(noise)
        if not self.keeps_variance:
            return noise
        return torch.cat([noise, variance.chunk(2)[-1] if self.active else variance], dim=1)


class Kandinsky22(Family):
    """The family of Kandinsky 2.2's decoders."""

    name = "kandinsky22_decoder"
    title = "Kandinsky 2.2 (decoder)"
    components: ClassVar[Sequence[str]] = ("unet", "scheduler", "movq")
    autoencoder = "movq"
    arguments: ClassVar[type[Arguments] | None] = EmbedsArguments
    tensors: ClassVar = {"image_embeds": ("added_cond_kwargs", "image_embeds")}
    negative_tensors: ClassVar = {"negative_image_embeds": ("added_cond_kwargs", "image_embeds")}
    channel_tensors: ClassVar = {"masked_image": slice(0, -1), "mask_image": slice(-1, None)}
    mask_tensor = "mask_image"
    picture_settings: ClassVar = {"resample": "bicubic", "reducing_gap": 1}

    def layout(self, parts: Parts) -> LatentLayout:
        """Return the layout; this family's latents are not scaled."""
        plain = LatentLayout.of_autoencoder(parts.part("movq"))
        return LatentLayout(plain.channels, plain.stride)

    def keeps_original(self, parts: Parts) -> bool:
        return True

    def draws_latents(self, parts: Parts) -> bool:
        return False

    def check(self, parts: Parts, call: Call, task: Task) -> None:
        config, latent = parts.part("unet").config, parts.layout.channels
        if config.in_channels not in (latent, 2 * latent + 1) or config.out_channels != 2 * latent:
            raise InputError(
                f"The UNet takes {config.in_channels} channels and predicts {config.out_channels}. It must "
                f"take {latent} (a regular decoder) or {2 * latent + 1} (one for inpainting), and predict "
                f"{2 * latent}: noise and variance. Use a decoder of Kandinsky 2.2.",
                parameter="unet",
            )
        if self.joins_mask(parts) and call.mask_image is None:
            raise InputError(
                f"This is an inpainting decoder: its UNet takes {config.in_channels} channels (latents, "
                "masked picture and mask), and no mask_image was given. Use AutoPipelineForInpainting, or "
                f"load the regular decoder for {task.name}.",
                parameter="mask_image",
            )
        self.check_embeds(parts, call)

    def check_embeds(self, parts: Parts, call: Call) -> None:
        """Refuse embeddings that the UNet cannot read, or that do not go together."""
        expected = parts.part("unet").config.encoder_hid_dim
        for name in ("image_embeds", "negative_image_embeds"):
            value = getattr(call.own, name)
            listed = value if isinstance(value, list | tuple) else [value]
            if value is not None and not all(isinstance(part, Tensor) and part.ndim == 2 for part in listed):
                raise InputError(
                    f"{name} is not a tensor (pictures, width) or a list of them. KandinskyV22PriorPipeline "
                    "makes such embeddings from prompts.",
                    parameter=name,
                )
            embeds = joined(value)
            if embeds is not None and embeds.shape[-1] != expected:
                raise InputError(
                    f"{name} has the width {embeds.shape[-1]}, and this UNet reads embeddings of width "
                    f"{expected}. Make it with the prior that belongs to this decoder.",
                    parameter=name,
                )
        negative, prompts = joined(call.own.negative_image_embeds), self.prompts(call)
        if negative is None and call.guidance_scale > 1:
            raise InputError(
                f"guidance_scale={call.guidance_scale} needs negative_image_embeds to push away from. Give "
                "those that the prior returns with image_embeds, or guidance_scale=1.",
                parameter="negative_image_embeds",
            )
        if negative is not None and len(negative) not in (1, prompts):
            raise InputError(
                f"negative_image_embeds has {len(negative)} rows and image_embeds {prompts}. Give one row "
                "for all, or one for each.",
                parameter="negative_image_embeds",
            )

    def prompts(self, call: Call) -> int:
        return len(joined(call.own.image_embeds))

    def guidance(self, parts: Parts, call: Call) -> Guidance:
        return LearnedVarianceGuidance(
            call.guidance_scale,
            active=self.is_guided(parts, call.guidance_scale),
            keeps_variance=uses_variance(parts.part("scheduler")),
            interval=call.guidance_interval,
        )

    def read(self, parts: Parts, call: Call, *, guided: bool) -> ImageEmbeds:
        return ImageEmbeds(joined(call.own.image_embeds), joined(call.own.negative_image_embeds))

    def condition(
        self, parts: Parts, call: Call, read: ImageEmbeds, *, rows: int, size: Size, task: Task
    ) -> Conditioning:
        def inputs(embeds: Tensor) -> dict[str, Any]:
            placed = embeds.to(parts.device, parts.part("unet").dtype)
            return {"added_cond_kwargs": {"image_embeds": spread(placed, rows)}}

        guided = self.is_guided(parts, call.guidance_scale) and read.negative is not None
        return Conditioning(inputs(read.positive), inputs(read.negative) if guided else None)  # type: ignore[arg-type]

    def encode(self, parts: Parts, pixels: Tensor, generator: Any) -> Tensor:
        """Return the encoder's latents, unscaled; nothing is drawn."""
        with parts.using("movq") as movq:
            latents = with_float32_fallback(movq, lambda model: model.encode(pixels.to(model.dtype)).latents)
        return latents.to(pixels.dtype)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        def decoded(model: Any) -> Tensor:
            return model.decode(latents.to(model.dtype), force_not_quantize=True).sample

        with parts.using("movq") as movq:
            return with_float32_fallback(movq, decoded)

    def latent_mask(self, repaint: Tensor) -> Tensor:
        return grow(repaint)

    def shown_mask(self, mask: Tensor) -> Tensor:
        return 1 - mask

    def channels(
        self, repaint: Tensor, original: Tensor | None, masked_latents: Callable[[], Tensor]
    ) -> Tensor:
        """Return the picture's latents without those under the mask, then the mask."""
        assert original is not None  # as keeps_original says
        kept = self.shown_mask(repaint)
        return torch.cat([original * kept, kept], dim=1)


class Kandinsky22Combined(Kandinsky22):
    """The family of decoders with their prior, which starts from prompts."""

    name = "kandinsky22"
    title = "Kandinsky 2.2"
    components = (
        *Kandinsky22.components,
        *("prior_prior", "prior_image_encoder", "prior_text_encoder", "prior_tokenizer", "prior_scheduler"),
        "prior_image_processor",
    )
    arguments = CombinedArguments

    def prompts(self, call: Call) -> int:
        return call.prompts

    def check_embeds(self, parts: Parts, call: Call) -> None:
        """Refuse a prior and a decoder that do not belong together; the prior checks its own arguments."""
        check_text("prompt", call.prompt)
        made = parts.part("prior_prior").config.embedding_dim
        read = parts.part("unet").config.encoder_hid_dim
        if made != read:
            raise InputError(
                f"The prior makes embeddings of width {made}, and the decoder's UNet reads {read}. They are "
                "of different checkpoints; load a prior and a decoder that belong together.",
                parameter="prior_prior",
            )


KANDINSKY_22_DECODER = Kandinsky22()
KANDINSKY_22 = Kandinsky22Combined()


def joined(embeds: Any) -> Any:
    """Return embeddings as one tensor, also when they are a list."""
    return torch.cat(list(embeds)) if isinstance(embeds, list | tuple) else embeds


def grow(repaint: Tensor) -> Tensor:
    """Return the mask with its neighbours, except above to the right and below to the left of each latent."""
    height, width = repaint.shape[-2:]
    padded = torch.nn.functional.pad(repaint, (1, 1, 1, 1))
    shifted = [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in _NEIGHBOURS]
    return torch.stack(shifted).amax(dim=0)


def uses_variance(scheduler: Any) -> bool:
    """Return whether a scheduler takes a predicted variance behind the noise.

    Its config alone does not tell: it keeps the settings of the scheduler that it was made from.
    """
    settings = getattr(scheduler, "settings", None)
    if settings is None:  # a scheduler of another library
        knows = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
        settings = scheduler.config if knows else {}
    return settings.get("variance_type") in ("learned", "learned_range")
