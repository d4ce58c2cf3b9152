"""The arguments of a pipeline's call: their names, defaults and meaning, and the checks at the border.

A `Task` says which of them a pipeline takes and in what order, so the familiar signatures are data:
`signature` turns a task into what `help()` and editors show.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from retouch.errors import InputError


def argument(default: Any, doc: str) -> Any:
    """A request field with the text that `help()` shows."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Request:
    """What one call asks for. Names and defaults follow the reference; a task overrides some defaults."""

    output_types: ClassVar[Sequence[str]] = ("pil", "np", "pt", "latent")

    prompt: str | Sequence[str] | None = argument(None, "What to paint; a list paints a batch.")
    image: Any = argument(
        None, "The picture or pictures: PIL, array or tensor in [0, 1], or 4-channel latents."
    )
    mask_image: Any = argument(
        None, "White is repainted, black is kept; grey is released late (see mask_mode)."
    )
    masked_image_latents: Tensor | None = argument(
        None, "Latents of the masked picture, instead of encoding it."
    )
    height: int | None = argument(None, "Height in pixels, a multiple of 8. None: that of the input picture.")
    width: int | None = argument(None, "Width in pixels, a multiple of 8. None: that of the input picture.")
    padding_mask_crop: int | None = argument(
        None, "Work on the masked area plus this margin only, at full size, and paste it back."
    )
    strength: float = argument(1.0, "How much of the schedule runs, 0 to 1; less keeps more of the picture.")
    num_inference_steps: int = argument(50, "Denoising steps of the whole schedule, before strength.")
    timesteps: Sequence[int] | None = argument(None, "Custom timesteps, descending, instead of a step count.")
    sigmas: Sequence[float] | None = argument(
        None, "Custom noise levels, descending, instead of a step count."
    )
    guidance_scale: float = argument(
        7.5, "How strongly to follow the prompt; 1 or less switches guidance off."
    )
    negative_prompt: str | Sequence[str] | None = argument(None, "What to stay away from.")
    num_images_per_prompt: int | None = argument(1, "Pictures for each prompt.")
    eta: float = argument(0.0, "DDIM's and TCD's share of fresh noise per step; others ignore it.")
    generator: torch.Generator | Sequence[torch.Generator] | None = argument(
        None, "Source of randomness; a list holds one for each picture."
    )
    latents: Tensor | None = argument(None, "The noise to start from, instead of drawing it.")
    prompt_embeds: Tensor | None = argument(None, "Text states, instead of a prompt.")
    negative_prompt_embeds: Tensor | None = argument(None, "Text states, instead of a negative prompt.")
    ip_adapter_image: Any = argument(
        None, "What an IP-Adapter sees: a picture; for several adapters a list, of pictures or lists of them."
    )
    ip_adapter_image_embeds: Sequence[Tensor] | None = argument(
        None, "For each IP-Adapter its images' embeddings, with guidance after the negative ones."
    )
    output_type: str = argument("pil", '"pil", "np", "pt" or "latent".')
    return_dict: bool = argument(True, "False returns a tuple (images, nsfw_content_detected).")
    cross_attention_kwargs: Mapping[str, Any] | None = argument(
        None,
        '"scale": how much LoRA adapters count in this call, on top of their own weights; '
        '"ip_adapter_masks": where the images of IP-Adapters count.',
    )
    guidance_rescale: float = argument(0.0, "Pulls strong guidance back to a natural contrast, 0 to 1.")
    clip_skip: int | None = argument(None, "How many of the text encoder's last layers to leave out.")
    callback_on_step_end: Callable[..., Mapping[str, Any]] | None = argument(
        None,
        "Called as callback(run, step_index, timestep, tensors) after each step; may return new tensors.",
    )
    callback_on_step_end_tensor_inputs: Sequence[str] = argument(
        ("latents",), "Names of the tensors it gets."
    )
    mask_mode: str = argument(
        "soft", '"soft" releases grey areas late in the run; "binary" hardens the mask at one half.'
    )
    prompt_syntax: str | None = argument(
        None, '"weighted" reads (word:1.3), (word) and [word], and prompts of any length.'
    )
    tile_size: int | None = argument(
        None,
        "Predict in overlapping windows of this side in pixels, for pictures larger than the model likes.",
    )
    guidance_interval: tuple[float, float] | None = argument(
        None, "Guide only between these noise levels, 0 (clean) to 1 (noise); quicker outside. None: always."
    )
    reuse_deep_features: int = argument(
        1, "Run the UNet's deep levels in every n-th evaluation only; 2 or 3 is quicker. 1: in each."
    )
    record: Any = argument(
        None, "True, or a retouch.Recording, keeps a picture of each step in the output's `recording`."
    )

    @property
    def prompts(self) -> int:
        """How many prompts were given, by text or by embeddings."""
        if self.prompt_embeds is not None:
            return int(self.prompt_embeds.shape[0])
        return 1 if isinstance(self.prompt, str) else len(self.prompt or ())

    @property
    def starts_noisy(self) -> bool:
        """Whether the picture is noisy latents that an earlier stage left."""
        return False

    @property
    def lora_scale(self) -> float:
        """How much adapters count in this call."""
        return float((self.cross_attention_kwargs or {}).get("scale", 1.0))

    @property
    def listened(self) -> Sequence[str]:
        """Names of the tensors that the callback gets; the reference's callback objects bring theirs."""
        own: Sequence[str] | None = getattr(self.callback_on_step_end, "tensor_inputs", None)
        return self.callback_on_step_end_tensor_inputs if own is None else own

    def check(self, size_factor: int, tensor_names: Collection[str] = ("latents",)) -> None:
        """Refuse what cannot work before anything large is moved. `size_factor` is the VAE's."""
        self.check_texts()
        _check_numbers(self, size_factor)
        if self.output_type not in self.output_types:
            *others, last = map(repr, self.output_types)
            known = f"{', '.join(others)} or {last}"
            raise InputError(f"output_type={self.output_type!r} is unknown; use {known}.")
        if self.prompt_syntax not in (None, "weighted"):
            raise InputError(
                f"prompt_syntax={self.prompt_syntax!r} is unknown; use 'weighted', or None for plain text."
            )
        if self.mask_mode not in ("soft", "binary"):
            raise InputError(f"mask_mode={self.mask_mode!r} is unknown; use 'soft' or 'binary'.")
        if self.padding_mask_crop is not None and self.output_type != "pil":
            raise InputError(
                f"padding_mask_crop pastes the result into the picture and so returns PIL, but "
                f"output_type={self.output_type!r}. Drop one of the two."
            )
        _check_scale(self.cross_attention_kwargs)
        callback = self.callback_on_step_end
        if callback is not None and not callable(callback):
            raise InputError(
                f"callback_on_step_end is a {type(callback).__name__}; it takes a function "
                "callback(run, step_index, timestep, tensors)."
            )
        unknown = [name for name in self.listened if name not in tensor_names]
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}; a callback can get "
                f"{', '.join(tensor_names)}."
            )

    def check_texts(self) -> None:
        """Refuse prompts that do not go together, and their absence."""
        _check_prompts(self)


def _check_prompts(request: Request) -> None:
    for name in ("prompt", "negative_prompt"):
        text, embeds = getattr(request, name), getattr(request, f"{name}_embeds")
        if text is not None and embeds is not None:
            raise InputError(f"Both {name} and {name}_embeds were given; they say the same thing. Give one.")
        if embeds is not None and (not isinstance(embeds, Tensor) or embeds.ndim != 3):
            raise InputError(
                f"{name}_embeds is {_described(embeds)}; it takes a tensor of (prompts, tokens, width), as "
                "encode_prompt makes it."
            )
        is_texts = isinstance(text, Sequence) and bool(text) and all(isinstance(part, str) for part in text)
        if text is not None and not isinstance(text, str) and not is_texts:
            raise InputError(f"{name} is {text!r:.80}; it takes a string or a list of strings.")
    if request.prompt is None and request.prompt_embeds is None:
        raise InputError('Neither prompt nor prompt_embeds was given; prompt="" is fine for removing things.')
    negative, embeds = request.negative_prompt, request.negative_prompt_embeds
    if isinstance(negative, Sequence) and not isinstance(negative, str) and len(negative) != request.prompts:
        raise InputError(
            f"negative_prompt has {len(negative)} entries for {request.prompts} prompts. Give one string, "
            f"or a list with one entry for each prompt."
        )
    if (
        embeds is not None
        and request.prompt_embeds is not None
        and embeds.shape != request.prompt_embeds.shape
    ):
        raise InputError(
            f"prompt_embeds has the shape {tuple(request.prompt_embeds.shape)} and negative_prompt_embeds "
            f"{tuple(embeds.shape)}. They must match; pad the shorter text."
        )


def _check_scale(given: Any) -> None:
    """Of all that the reference's attention takes, what adapters are told alone has a meaning here."""
    if given is None:
        return
    known = ("scale", "ip_adapter_masks")
    unknown = [key for key in given if key not in known] if isinstance(given, Mapping) else [given]
    scale = given.get("scale", 1.0) if isinstance(given, Mapping) else 1.0
    if unknown or not isinstance(scale, Real) or not math.isfinite(scale):
        raise InputError(
            f"cross_attention_kwargs is {given!r:.80}; it takes {{'scale': number}}, by which LoRA "
            "adapters count in this call, and ip_adapter_masks. Leave the rest out."
        )


def _described(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_numbers(request: Request, size_factor: int) -> None:
    whole = dict.fromkeys(("num_inference_steps", "num_images_per_prompt", "reuse_deep_features"), 1)
    whole |= {"padding_mask_crop": 0, "clip_skip": 0}
    sides = dict.fromkeys(("height", "width", "tile_size"), size_factor)
    for name, least in (whole | sides).items():
        value = getattr(request, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and value >= least):
            raise InputError(f"{name}={value!r} is not a whole number of {least} or more.")
    for name in ("strength", "guidance_scale", "guidance_rescale", "eta"):
        value = getattr(request, name)
        if not isinstance(value, Real) or not math.isfinite(value):
            raise InputError(f"{name}={value!r} is not a finite number.")
    for name in ("height", "width"):
        value = getattr(request, name)
        if value is not None and value % size_factor:
            nearest = max(size_factor, round(value / size_factor) * size_factor)
            raise InputError(f"{name}={value} is not a multiple of {size_factor}. The nearest is {nearest}.")
    if not 0 <= request.strength <= 1:
        raise InputError(f"strength={request.strength} is outside 0 to 1.")
    check_interval(request.guidance_interval)
    if request.timesteps is not None and request.sigmas is not None:
        raise InputError("Both timesteps and sigmas were given; each is a whole schedule. Give one.")
    source = request.generator
    for each in source if isinstance(source, Sequence) else [source]:
        if each is not None and not isinstance(each, torch.Generator):
            raise InputError(
                f"generator is {each!r:.80}; it takes a torch.Generator, or a list with one for each "
                "picture. For a seed give torch.Generator().manual_seed(seed)."
            )


def check_interval(interval: Any) -> None:
    """Refuse what is no interval of noise levels."""
    if interval is None:
        return
    is_pair = isinstance(interval, list | tuple) and len(interval) == 2
    if not is_pair or not all(isinstance(edge, Real) and not isinstance(edge, bool) for edge in interval):
        raise InputError(
            f"guidance_interval is {interval!r:.80}; it takes two noise levels from 0 (clean) to 1 (noise), "
            "the lower first, such as (0.2, 1.0). Leave it out to guide in all steps."
        )
    if not 0 <= interval[0] < interval[1] <= 1:
        raise InputError(
            f"guidance_interval={tuple(interval)} is no interval of noise levels. They go from 0 (clean) to "
            "1 (noise); give the lower one first, such as (0.2, 1.0)."
        )


# What every task that makes pictures takes besides.
_ALWAYS = ("tile_size", "guidance_interval", "reuse_deep_features", "record")


@dataclass(frozen=True)
class Task:
    """Which arguments a pipeline takes, in the order people know, and what is particular to it."""

    name: str
    arguments: Sequence[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()
    request: type[Request] = Request
    summary: str = "Make pictures; returns a PipelineOutput."
    makes_pictures: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)  # arguments that mean a field of another name

    def __post_init__(self) -> None:
        if self.makes_pictures:
            every = dict.fromkeys([*self.arguments, *_ALWAYS])
            object.__setattr__(self, "arguments", list(every))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Request:
        """A call's arguments as a request; an unknown name is answered with the nearest known one."""
        if len(args) > len(self.arguments):
            raise InputError(
                f"{len(args)} positional arguments were given; {self.name} takes {len(self.arguments)}."
            )
        given = dict(zip(self.arguments, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.arguments:
                near = difflib.get_close_matches(name, self.arguments, n=1)
                near += [known for known in self.arguments if known.startswith(name)]
                hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(self.arguments)}."
                raise InputError(f"{self.name} has no argument {name!r}. {hint}")
            if name in given:
                raise InputError(f"{name} was given twice, by position and by name.")
            given[name] = value
        for name in self.required:
            if given.get(name) is None:
                raise InputError(f"{self.name} needs {name}, which was not given (or is None).")
        given = {self.renamed.get(name, name): value for name, value in given.items()}
        return self.request(**{**self.defaults, **given})

    def signature(self) -> inspect.Signature:
        """The call's signature, as `help()` and editors show it."""
        known = self._fields()
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        for name in self.arguments:
            default = self.defaults.get(name, known[name].default)
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=default,
                    annotation=known[name].type,
                )
            )
        return inspect.Signature(parameters)

    def describe(self) -> str:
        """The arguments' meanings, for the call's docstring."""
        known = self._fields()
        return "\n".join(f"    {name}: {known[name].metadata['doc']}" for name in self.arguments)

    def _fields(self) -> dict[str, Field[Any]]:
        known = {entry.name: entry for entry in fields(self.request)}
        return known | {name: known[meant] for name, meant in self.renamed.items()}
