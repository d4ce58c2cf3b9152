"""The protocol of a family: which parts it has, and the questions that a run asks it.

A family is a value without state. It owns no loop: pipelines/run.py asks it for conditioning, latents and a
schedule, and sampling/denoise.py runs the steps. A new family is one such file, its networks in models/ and
one row in registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from retouch.errors import InputError
from retouch.families.autoencoder import decode_latents, encode_pixels
from retouch.families.call import Arguments, Call, Task, check_texts
from retouch.families.latents import LatentLayout
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.guidance import Guidance
from retouch.sampling.start import shorten
from retouch.schedulers.foreign import as_plan
from retouch.schedulers.plan import Plan

Size = tuple[int, int]  # height and width in pixels


class Parts(Protocol):
    """The named parts of a pipeline, as families and adapters see them."""

    @property
    def family(self) -> Family:
        """The family of the parts."""

    @property
    def component_names(self) -> Sequence[str]:
        """Names of the parts that pipelines of this class can have."""

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""

    @property
    def device(self) -> torch.device:
        """The device on which calls run."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the models."""

    @property
    def layout(self) -> LatentLayout:
        """How the latents lie."""

    def part(self, name: str) -> Any:
        """Return a part by name, without a compiler's wrapper; None where the pipeline has none."""

    def using(self, name: str) -> AbstractContextManager[Any]:
        """Return a context in which the part is where it can run."""

    def put(self, name: str, part: Any) -> None:
        """Set a part; None removes it. A model moves to the pipeline's device, unless parts are offloaded."""

    def load_part(
        self, folder: Path, subfolder: str, class_name: str, *, dtype: torch.dtype | None, pickled: bool
    ) -> Any:
        """Load one part from the folder of a checkpoint on this machine."""


class Family:
    """Base of the families, with the answers that most of them give."""

    name: ClassVar[str]
    title: ClassVar[str]  # for messages

    # Its parts by the names that a checkpoint's folder has for them.
    components: ClassVar[Sequence[str]]
    optional: ClassVar[Sequence[str]] = ()
    switches: ClassVar[Mapping[str, Any]] = {}  # settings that model_index.json holds, with their defaults
    denoiser: ClassVar[str] = "unet"
    autoencoder: ClassVar[str] = "vae"

    arguments: ClassVar[type[Arguments] | None] = None  # of its calls, beyond those that all families have

    # Callback tensor name -> path in the denoiser's keyword arguments. Of the names in `negative_tensors` a
    # callback sees the negative rows alone.
    tensors: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    negative_tensors: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Callback tensor name -> where it is in the channels joined after the latents. One of them is the mask.
    channel_tensors: ClassVar[Mapping[str, slice]] = {
        "mask": slice(0, 1),
        "masked_image_latents": slice(1, None),
    }
    mask_tensor: ClassVar[str] = "mask"

    reports_safety: ClassVar[bool] = False  # the output tuple has a second entry
    takes_adapters: ClassVar[bool] = False  # LoRA, textual inversion, IP-Adapter
    picture_settings: ClassVar[Mapping[str, Any]] = {}  # of the VaeImageProcessor, where they differ
    ignored_settings: ClassVar[Sequence[str]] = ()  # of the constructor: accepted and without effect

    def given_components(self, components: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts that a caller gives or leaves out, with those left out by default."""
        return dict(components)

    def check_found(self, names: Sequence[str]) -> None:
        """Refuse a checkpoint without a part that the caller asks for. `names` are given or in the
        checkpoint.
        """

    def layout(self, parts: Parts) -> LatentLayout:
        """Return how the latents lie."""
        return LatentLayout.of_autoencoder(parts.part(self.autoencoder))

    def default_size(self, parts: Parts) -> int:
        """Return the side of the pictures that the checkpoint was trained on."""
        return int(parts.part(self.denoiser).config.sample_size or 64) * parts.layout.stride

    def joins_mask(self, parts: Parts) -> bool:
        """Return whether the denoiser was made for inpainting: it takes mask and masked picture too."""
        return bool(parts.part(self.denoiser).config.in_channels == 2 * parts.layout.channels + 1)

    def keeps_original(self, parts: Parts) -> bool:
        """Return whether the loop holds the latents outside the mask to the original."""
        return not self.joins_mask(parts)

    def draws_latents(self, parts: Parts) -> bool:
        """Return whether encoding a picture draws random numbers."""
        return type(parts.part(self.autoencoder)).__name__ != "AutoencoderTiny"

    def check(self, parts: Parts, call: Call, task: Task) -> None:
        """Refuse what this family's models cannot do."""
        check_texts(call)

    def repair(self, parts: Parts, scheduler: Any, task: Task) -> Any:
        """Return the scheduler, with settings mended that early checkpoints left wrong."""
        return scheduler

    def prompts(self, call: Call) -> int:
        """Return for how many prompts a call asks."""
        return call.prompts

    def starts_noisy(self, call: Call) -> bool:
        """Return whether the picture is noisy latents that an earlier stage left."""
        return False

    def is_guided(self, parts: Parts, scale: float) -> bool:
        """Return whether a guidance scale takes a second evaluation with the negative inputs."""
        return scale > 1

    def guidance(self, parts: Parts, call: Call) -> Guidance:
        """Return how the positive and the negative prediction become one."""
        return Guidance(
            call.guidance_scale,
            call.guidance_rescale,
            active=self.is_guided(parts, call.guidance_scale),
            interval=call.guidance_interval,
        )

    def read(self, parts: Parts, call: Call, *, guided: bool) -> Any:
        """Return what the encoders make of the prompts. It depends on nothing but these arguments."""
        raise NotImplementedError

    def condition(
        self, parts: Parts, call: Call, read: Any, *, rows: int, size: Size, task: Task
    ) -> Conditioning:
        """Return the denoiser's inputs other than latents, from what `read` returned, for `rows` pictures."""
        raise NotImplementedError

    def encode(self, parts: Parts, pixels: Tensor, generator: Any) -> Tensor:
        """Return latents of pixels in [-1, 1]."""
        with parts.using(self.autoencoder) as vae:
            return encode_pixels(vae, parts.layout, pixels, generator)

    def decode(self, parts: Parts, latents: Tensor) -> Tensor:
        """Return pixels in [-1, 1] of latents."""
        with parts.using(self.autoencoder) as vae:
            return decode_latents(vae, parts.layout, latents)

    def latent_mask(self, repaint: Tensor) -> Tensor:
        """Return a mask of the latents' size as this family uses it."""
        return repaint

    def shown_mask(self, mask: Tensor) -> Tensor:
        """Convert between `repaint` and the mask that the denoiser sees, either way."""
        return mask

    def channels(
        self, repaint: Tensor, original: Tensor | None, masked_latents: Callable[[], Tensor]
    ) -> Tensor:
        """Return what is joined after the latents of a denoiser made for inpainting.

        `repaint` is hard. `original` holds the picture's clean latents where the loop needs them.
        """
        return torch.cat([self.shown_mask(repaint), masked_latents()], dim=1)

    def schedule(self, parts: Parts, call: Call, size: Size, generator: Any) -> tuple[Plan, int]:
        """Return the steps of a run, and how many of the requested steps they are."""
        custom = call.timesteps is not None or call.sigmas is not None
        plan = as_plan(
            parts.part("scheduler"),
            None if custom else call.num_inference_steps,
            timesteps=call.timesteps,
            sigmas=call.sigmas,
            device=parts.device,
            generator=generator,
            eta=call.eta,
            **self.plan_options(parts, size),
        )
        requested = len(plan) if custom else call.num_inference_steps
        return self.section(parts, plan, requested, call)

    def plan_options(self, parts: Parts, size: Size) -> dict[str, Any]:
        """Return further keywords for the scheduler's plan, such as a shift that depends on the size."""
        return {}

    def section(self, parts: Parts, plan: Plan, requested: int, call: Call) -> tuple[Plan, int]:
        """Return the part of the schedule that a call runs, and how many of the requested steps it is."""
        return (plan, requested) if call.image is None else shorten(plan, requested, call.strength)

    def denoise_with(self, parts: Parts, model: Any) -> Callable[..., Any]:
        """Return the denoiser as a function of (batch, channels, height, width) latents and a timestep."""
        return model

    def flag_unsafe(self, parts: Parts, pixels: Tensor, processor: Any) -> list[bool] | None:
        """Return a safety checker's verdict on each picture, or None without one."""
        return None


def refuse_wrong_width(parts: Parts, call: Call, task: Task, title: str) -> None:
    """Refuse a denoiser of unknown input channels, and one for inpainting without a mask."""
    width, latent = parts.part("unet").config.in_channels, parts.layout.channels
    if width not in (latent, 2 * latent + 1):
        raise InputError(
            f"The UNet takes {width} input channels. Supported are {latent} (a regular checkpoint) and "
            f"{2 * latent + 1} (an inpainting one). Load a checkpoint of {title}.",
            parameter="unet",
        )
    if width != latent and call.mask_image is None:
        raise InputError(
            f"This is an inpainting checkpoint: its UNet takes {width} channels (latents, mask and masked "
            f"picture), and no mask_image was given. Use AutoPipelineForInpainting, or load a regular "
            f"checkpoint for {task.name}.",
            parameter="mask_image",
        )
