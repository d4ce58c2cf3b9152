"""How a pipeline is called, and the questions that a family of models answers.

A family (stable_diffusion.py) derives from `Pipeline` and answers what is particular to its models;
its parts are in bundle.py, loading and saving them in stored.py. The course of a call is in run.py, the loop
in sampling/denoise.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from retouch.errors import InputError
from retouch.images.processor import VaeImageProcessor
from retouch.models import int8
from retouch.models.prepared.allocator import keeping_blocks
from retouch.models.prepared.prepare import is_chosen
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.components import plain
from retouch.pipelines.picture_run import PictureRun
from retouch.pipelines.pictures import Pictures, prepare
from retouch.pipelines.previews import check_preview_decoder
from retouch.pipelines.request import Request, Task
from retouch.pipelines.run import Run
from retouch.pipelines.stored import StoredBundle
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.control import Control
from retouch.sampling.guidance import Guidance
from retouch.sampling.region import Region
from retouch.sampling.start import shorten
from retouch.schedulers.plan import Plan


class BasePipeline(StoredBundle, ABC):
    """Parts that belong together, and the calls that use them. Nothing of a call stays on it.

    The abstract members are what a family of models answers; the rest of a call is common to all.
    """

    task: ClassVar[Task]
    denoiser: ClassVar[str] = "unet"  # the part that predicts
    size_factor: int = 1  # heights and widths must be multiples of it
    # What a callback may see of the model's inputs, and where it is among them: for some names the rows of
    # both sides of the guidance, for others those of the negative side alone.
    listenable: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    listenable_negatives: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # And of the channels that are joined after the latents. The first or the last of them is the mask.
    channel_names: ClassVar[Mapping[str, slice]] = {}
    mask_name: ClassVar[str] = ""

    scheduler: Any

    @abstractmethod
    def condition(self, run: Any) -> Conditioning:
        """What the model is told besides the latents."""

    @abstractmethod
    def start(self, *args: Any, **kwargs: Any) -> Run:
        """Begin a call with the arguments of `__call__`: iterate it step by step, then take `result()`."""

    def keeping_blocks(self) -> AbstractContextManager[None]:
        """Around one call or several: optimized models on a CPU need not ask the system for each block."""
        optimized = any(is_chosen(module) for module in self._modules().values())
        return keeping_blocks() if optimized and self.device.type == "cpu" else nullcontext()

    def uses_guidance(self, scale: float) -> bool:
        """Whether this scale takes a second evaluation with the negative inputs."""
        return scale > 1

    def guidance(self, request: Request) -> Guidance:
        """How the two sides' predictions become one."""
        scale = request.guidance_scale
        return Guidance(
            scale,
            request.guidance_rescale,
            active=self.uses_guidance(scale),
            interval=request.guidance_interval,
        )

    @property
    def tensor_names(self) -> list[str]:
        """The tensors that a callback can get."""
        return ["latents", *self.listenable, *self.listenable_negatives, *self.channel_names]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "task" not in cls.__dict__:
            return
        task = cls.task

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.keeping_blocks():
                return self.start(*args, **kwargs).result()

        call.__name__, call.__qualname__ = "__call__", f"{cls.__qualname__}.__call__"
        call.__signature__ = task.signature()  # type: ignore[attr-defined]
        call.__doc__ = f"{task.summary}\n\n{task.describe()}"
        cls.__call__ = call  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no task; use one of the named pipelines.")

    def check(self, request: Any) -> None:
        """Refuse what this family's models cannot do."""

    def control(self, run: Any, plan: Plan) -> AbstractContextManager[Control | None]:
        """What steers the model besides its inputs, for as long as the steps take."""
        return nullcontext()

    def part_of(self, plan: Plan, requested: int, request: Any) -> tuple[Plan, int]:
        """The part of the schedule that the request takes, and how many of the requested steps that is."""
        return (plan, requested) if request.image is None else shorten(plan, requested, request.strength)


class Pipeline(BasePipeline):
    """A pipeline whose latents are of pictures."""

    region_class: ClassVar[type[Region]] = Region  # how the loop holds the rest of the picture
    reports_safety: ClassVar[bool] = False  # the output tuple has a second entry
    samples_latents: ClassVar[bool] = True  # encoding draws random numbers
    channel_names: ClassVar = {"mask": slice(0, 1), "masked_image_latents": slice(1, None)}
    mask_name: ClassVar = "mask"

    unlisted_components: ClassVar = {"preview_decoder": "AutoencoderTiny"}

    vae: Any  # whatever this family calls its autoencoder
    unet: Any

    keeps_original: bool  # outside the mask the loop holds the latents to the original

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; the UNet may take more."""
        return int(self.vae.config.latent_channels)

    @property
    def joins_mask(self) -> bool:
        """Whether the UNet is one for inpainting, which takes the mask and the masked picture, too."""
        return bool(self.unet.config.in_channels == 2 * self.latent_channels + 1)

    @property
    def default_size(self) -> int:
        """Side of the pictures that the checkpoint was trained on."""
        return int(self.unet.config.sample_size or 64) * self.vae_scale_factor

    @abstractmethod
    def encode(self, pixels: Tensor, generator: Any) -> Tensor:
        """Latents of pixels in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] of latents."""

    @abstractmethod
    def joined_channels(self, run: PictureRun, mask: Tensor, original: Tensor | None) -> Tensor:
        """What is joined after the latents of a model that sees the mask.

        The mask is hard, 1 = repaint; `original` holds the picture's clean latents where the run needs them.
        """

    def latent_mask(self, mask: Tensor) -> Tensor:
        """How a mask of the latents' size is used."""
        return mask

    def shown_mask(self, mask: Tensor) -> Tensor:
        """The mask as this family's channel has it, and back."""
        return mask

    def prepare(self, request: Request) -> Pictures:
        """The request's pictures at the working size."""
        return prepare(request, self.image_processor, self.default_size, self.latent_channels)

    def flag_unsafe(self, pixels: Tensor) -> list[bool] | None:
        """A safety checker's verdict on each picture, if there is one."""
        return None

    def __init__(self, **components: Any) -> None:
        super().__init__(**components)
        factor = self.vae_scale_factor
        self.image_processor = VaeImageProcessor(vae_scale_factor=factor)
        self.mask_processor = VaeImageProcessor(
            vae_scale_factor=factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    @property
    def preview_decoder(self) -> Any:
        """An AutoencoderTiny that shows what a run is at; None: a linear map does it."""
        return self._preview_decoder

    @preview_decoder.setter
    def preview_decoder(self, decoder: Any) -> None:
        if decoder is not None:
            check_preview_decoder(decoder, self.latent_channels, self.vae_scale_factor)
        self._preview_decoder = decoder

    @property
    def vae_scale_factor(self) -> int:
        """Pixels for each latent along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_factor(self) -> int:  # type: ignore[override]
        return self.vae_scale_factor

    def start(self, *args: Any, **kwargs: Any) -> PictureRun:
        return PictureRun(self, self.task, self.task.bind(args, kwargs))

    @property
    def why_not_int8(self) -> str | None:
        """What keeps the UNet from multiplying in 8 bits, in words; None if nothing does."""
        if self.device.type != "cpu":
            return f"the pipeline is on {self.device}, and only the CPU's way is known"
        if not int8.is_available():
            return "this processor, or this build of torch, has no operations for it (VNNI and oneDNN)"
        if not isinstance(plain(self.unet), UNet2DConditionModel):
            return f"the UNet is a {type(plain(self.unet)).__name__} of another library"
        if plain(self.unet).dtype not in (torch.float32, torch.bfloat16):
            return f"the UNet is in {plain(self.unet).dtype}"
        if getattr(self, "get_list_adapters", dict)():
            return "LoRA adapters are loaded, whose layers are not rounded"
        return "IP-Adapters are loaded" if getattr(self, "num_ip_adapters", 0) else None

    def with_int8(self) -> Self:
        """The same pipeline with a UNet that multiplies in 8 bits, which is quicker and a little less exact.

        That UNet is a copy of the weights as they are now, of half the size of bfloat16's; this pipeline
        keeps its own.
        """
        reason = self.why_not_int8
        if reason is not None:
            raise InputError(
                f"int8 was asked for, but {reason}. It takes a pipeline in float32 or bfloat16, on an x86 "
                "CPU, without adapters. Leave it out, or unload the adapters first."
            )
        return type(self).from_pipe(self, unet=int8.int8_copy(plain(self.unet)))

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in overlapping tiles, in less memory."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode in one piece."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode a batch one picture at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode a batch in one piece."""
        self.vae.disable_slicing()
