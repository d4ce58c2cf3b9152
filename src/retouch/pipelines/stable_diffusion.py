"""Stable Diffusion 1.x and 2.x: how it reads prompts and what its VAE and UNet want."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.pipelines.pipeline import Pipeline
from retouch.pipelines.request import Request
from retouch.pipelines.run import Run
from retouch.pipelines.text import encode, guidance_embedding, tokenize
from retouch.sampling.conditioning import Conditioning


class StableDiffusion(Pipeline):
    """The family; names.py gives it its three fronts."""

    component_names = (
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "safety_checker",
        "feature_extractor",
        "image_encoder",
    )
    optional_components = ("safety_checker", "feature_extractor", "image_encoder")

    # Settings that early checkpoints left wrong, and what they must be. Which front mends which is the
    # reference's choice; its pictures depend on it.
    scheduler_repairs: ClassVar[Mapping[str, Any]] = {}

    text_encoder: Any
    tokenizer: Any
    unet: Any
    safety_checker: Any
    feature_extractor: Any

    def __init__(self, *, requires_safety_checker: bool | None = None, **components: Any) -> None:
        super().__init__(**components)
        self.scheduler = self._repaired(self.scheduler)

    def _repaired(self, scheduler: Any) -> Any:
        wrong = {
            key: value
            for key, value in self.scheduler_repairs.items()
            if key in scheduler.config and scheduler.config[key] != value
        }
        if not wrong:
            return scheduler
        changes = ", ".join(f"{key} from {scheduler.config[key]} to {value}" for key, value in wrong.items())
        warnings.warn(
            f"The scheduler's settings are of an early format that Stable Diffusion was not trained with; "
            "changed "
            f"{changes}. Correct scheduler_config.json to be rid of this message, or set pipeline.scheduler "
            f"afterwards to use other settings.",
            stacklevel=4,
        )
        return type(scheduler).from_config({**scheduler.config, **wrong})

    @classmethod
    def _component_arguments(cls, components: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(components)
        given.pop("requires_safety_checker", None)
        # Unasked, the checker stays out: it costs 1.2 GB, and its objections are only reported anyway.
        if given.get("safety_checker") is True:
            del given["safety_checker"]
        elif given.setdefault("safety_checker", None) is None:
            given.setdefault("feature_extractor", None)
        given.setdefault("image_encoder", None)
        return super()._component_arguments(given)

    @property
    def latent_channels(self) -> int:  # type: ignore[override]
        return int(self.vae.config.latent_channels)

    @property
    def keeps_original(self) -> bool:  # type: ignore[override]
        """A regular UNet sees no mask, so the loop holds the rest of the picture for it."""
        return not self.joins_mask

    @property
    def joins_mask(self) -> bool:  # type: ignore[override]
        """An inpainting UNet takes the mask and the masked picture after the latents: 4 + 1 + 4 channels."""
        return bool(self.unet.config.in_channels == 2 * self.latent_channels + 1)

    @property
    def default_size(self) -> int:  # type: ignore[override]
        return int(self.unet.config.sample_size or 64) * self.vae_scale_factor

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
                "masked "
                f"picture), and no mask_image was given. Use AutoPipelineForInpainting, or load a regular "
                f"checkpoint for {self.task.name}."
            )

    def condition(self, run: Run) -> Conditioning:
        """Text states for both sides of the guidance."""
        request = run.request
        positive, negative = self.encode_prompt(
            request.prompt,
            num_images_per_prompt=1,
            do_classifier_free_guidance=run.guidance.active,
            negative_prompt=request.negative_prompt,
            prompt_embeds=request.prompt_embeds,
            negative_prompt_embeds=request.negative_prompt_embeds,
            clip_skip=request.clip_skip,
        )
        inputs: dict[str, Any] = {"encoder_hidden_states": run.spread(positive)}
        width = self.unet.config.time_cond_proj_dim
        if width is not None:
            weights = torch.full((run.rows,), request.guidance_scale - 1)
            inputs["timestep_cond"] = guidance_embedding(weights, width).to(positive)
        return Conditioning(
            inputs, None if negative is None else {**inputs, "encoder_hidden_states": run.spread(negative)}
        )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        *,
        clip_skip: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Text states of the prompts and, with guidance, of the negative ones (an empty text if none)."""
        with self.placement.using("text_encoder") as encoder:
            if prompt_embeds is None:
                prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
                ids = tokenize(self.tokenizer, prompts, self.tokenizer.model_max_length)
                prompt_embeds = encode(encoder, ids, clip_skip)
            positive = prompt_embeds.to(self.device, encoder.dtype)
            negative = None
            if do_classifier_free_guidance:
                if negative_prompt_embeds is None:
                    against = (
                        [negative_prompt or ""]
                        if isinstance(negative_prompt, str | None)
                        else negative_prompt
                    )
                    negative_prompt_embeds = encode(
                        encoder, tokenize(self.tokenizer, against, positive.shape[1])
                    )
                negative = negative_prompt_embeds.to(positive)
                if len(negative) != len(positive):
                    negative = negative.repeat(len(positive) // len(negative), 1, 1)
        each = num_images_per_prompt
        return positive.repeat_interleave(each, 0), None if negative is None else negative.repeat_interleave(
            each, 0
        )

    def encode(self, pixels: Tensor, generator: Any) -> Tensor:
        """Scaled latents of pixels in [-1, 1], sampled from the VAE's distribution."""
        with self.placement.using("vae") as vae:
            if isinstance(generator, Sequence):
                parts = [
                    vae.encode(row).latent_dist.sample(source)
                    for row, source in zip(pixels.split(1), generator, strict=False)
                ]
                latents = torch.cat(parts)
            else:
                latents = vae.encode(pixels).latent_dist.sample(generator)
            return latents * vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] of scaled latents; in float32 where half precision overflows."""
        with self.placement.using("vae") as vae:
            latents = latents / vae.config.scaling_factor
            pixels = vae.decode(latents, return_dict=False)[0]
            if vae.dtype != torch.float32 and not bool(pixels.isfinite().all()):
                warnings.warn(
                    f"The VAE overflowed in {vae.dtype}; decoding once more in float32. Load the pipeline in "
                    f"bfloat16 or float32 to spare the second pass.",
                    stacklevel=2,
                )
                pixels = copy.deepcopy(vae).float().decode(latents.float(), return_dict=False)[0]
            return pixels

    def joined_channels(self, mask: Tensor, masked: Tensor) -> Tensor:
        """The mask, then the masked picture."""
        return torch.cat([mask, masked], dim=1)

    def flag_unsafe(self, pixels: Tensor) -> list[bool] | None:
        """What the safety checker says of each picture. It changes none of them."""
        if self.safety_checker is None:
            return None
        pictures = self.image_processor.postprocess(pixels, output_type="pil")
        seen = self.feature_extractor(pictures, return_tensors="pt").pixel_values
        with self.placement.using("safety_checker") as checker:
            return checker.flags(seen.to(self.device, checker.dtype))
