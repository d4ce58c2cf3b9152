"""The arguments of a pipeline's call: their defaults and meanings, and the only checks of them.

`Call` holds what all families share. A family or an adapter with arguments of its own declares them in a
dataclass beside its code (`Arguments`), which a call carries as `own` or `control`. A `Task` says which
arguments it needs and which it refuses.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from retouch.errors import InputError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ArgumentsT = TypeVar("ArgumentsT", bound="Arguments")


def argument(default: Any, doc: str) -> Any:
    """Declare an argument with the text that `help()` shows."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Arguments:
    """Base of the groups of arguments."""

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the arguments in this group."""
        return [entry.name for entry in fields(cls) if "doc" in entry.metadata]


@dataclass(frozen=True)
class Call(Arguments):
    """What one call asks for. Names and defaults follow the reference; a task overrides some defaults."""

    prompt: str | Sequence[str] | None = argument(None, "What to paint; a list paints a batch.")
    image: Any = argument(
        None, "The picture or pictures: PIL, array or tensor in [0, 1], or latents with 4 channels."
    )
    mask_image: Any = argument(
        None, "The mask: white is repainted, black is kept, grey is released late (see mask_mode)."
    )
    masked_image_latents: Tensor | None = argument(
        None, "Latents of the masked picture. None: they are encoded."
    )
    height: int | None = argument(None, "Height in pixels, a multiple of 8. None: the input picture's.")
    width: int | None = argument(None, "Width in pixels, a multiple of 8. None: the input picture's.")
    padding_mask_crop: int | None = argument(
        None, "Work only on the masked area with this margin, at full size, and paste it back."
    )
    strength: float = argument(
        1.0,
        "How much of the schedule runs, 0 to 1; less keeps more of the picture. None: the task's default.",
    )
    num_inference_steps: int = argument(50, "Denoising steps of the whole schedule, before strength.")
    timesteps: Sequence[int] | None = argument(None, "Custom timesteps, descending, instead of a step count.")
    sigmas: Sequence[float] | None = argument(
        None, "Custom noise levels, descending, instead of a step count."
    )
    guidance_scale: float = argument(
        7.5, "How strongly to follow the prompt; 1 or less turns guidance off. None: the task's default."
    )
    negative_prompt: str | Sequence[str] | None = argument(None, "What to stay away from.")
    num_images_per_prompt: int | None = argument(1, "Pictures for each prompt.")
    eta: float = argument(0.0, "Share of fresh noise per step in DDIM and TCD; others ignore it.")
    generator: torch.Generator | Sequence[torch.Generator] | None = argument(
        None, "Source of random numbers; a list holds one for each picture."
    )
    latents: Tensor | None = argument(None, "The noise to start from. None: it is drawn.")
    prompt_embeds: Tensor | None = argument(None, "Text states, instead of a prompt.")
    negative_prompt_embeds: Tensor | None = argument(None, "Text states, instead of a negative prompt.")
    ip_adapter_image: Any = argument(
        None, "The image for the IP-Adapter; for several adapters a list of images or of lists of them."
    )
    ip_adapter_image_embeds: Sequence[Tensor] | None = argument(
        None, "Embeddings of the images for each IP-Adapter; with guidance the negative rows come first."
    )
    output_type: str = argument("pil", '"pil", "np", "pt" or "latent".')
    return_dict: bool = argument(True, "False returns a tuple (images, nsfw_content_detected).")
    cross_attention_kwargs: Mapping[str, Any] | None = argument(
        None,
        '"scale": a factor for all LoRA adapters in this call; "ip_adapter_masks": where the images of '
        "IP-Adapters apply.",
    )
    guidance_rescale: float = argument(0.0, "Pulls strong guidance back to a natural contrast, 0 to 1.")
    clip_skip: int | None = argument(None, "How many of the text encoder's last layers to leave out.")
    callback_on_step_end: Callable[..., Mapping[str, Any]] | None = argument(
        None,
        "Called as callback(run, step_index, timestep, tensors) after each step; may return new tensors.",
    )
    callback_on_step_end_tensor_inputs: Sequence[str] = argument(
        ("latents",), "Names of the tensors that the callback gets."
    )
    mask_mode: str = argument(
        "soft", '"soft" releases grey areas late in the run; "binary" hardens the mask at one half.'
    )
    prompt_syntax: str | None = argument(
        None, '"weighted" reads (word:1.3), (word) and [word], and prompts of any length.'
    )
    tile_size: int | None = argument(
        None, "Predict in overlapping windows of this side in pixels, for pictures larger than the model's."
    )
    guidance_interval: tuple[float, float] | None = argument(
        None, "Guide only between these noise levels, 0 (clean) to 1 (noise); faster outside. None: always."
    )
    reuse_deep_features: int = argument(
        1, "Run the UNet's deep levels in every n-th evaluation only; 2 or 3 is faster. 1: in each."
    )
    record: Any = argument(
        None, "True, or a retouch.Recording, keeps a picture of each step in the output's `recording`."
    )

    own: Any = None  # the arguments that only the pipeline's family has
    control: Any = None  # a ControlNet's

    output_types: ClassVar[Sequence[str]] = ("pil", "np", "pt", "latent")

    @property
    def prompts(self) -> int:
        """How many prompts were given, as text or as embeddings."""
        if self.prompt_embeds is not None:
            return int(self.prompt_embeds.shape[0])
        return 1 if isinstance(self.prompt, str) else len(self.prompt or ())

    @property
    def lora_scale(self) -> float:
        """The factor for all LoRA adapters in this call."""
        return float((self.cross_attention_kwargs or {}).get("scale", 1.0))

    @property
    def ip_adapter_masks(self) -> Any:
        """The masks that say where the images of IP-Adapters apply."""
        return (self.cross_attention_kwargs or {}).get("ip_adapter_masks")

    @property
    def callback_tensors(self) -> Sequence[str]:
        """Names of the tensors for the callback; the reference's callback objects bring their own."""
        own: Sequence[str] | None = getattr(self.callback_on_step_end, "tensor_inputs", None)
        return self.callback_on_step_end_tensor_inputs if own is None else own


@dataclass(frozen=True)
class Task:
    """What a pipeline class is for: which arguments it needs, which it refuses, and other defaults."""

    name: str
    needs: Sequence[str] = ()
    refuses: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def with_defaults(self, **defaults: Any) -> Task:
        """Return the same task with other defaults for some arguments."""
        return replace(self, defaults={**self.defaults, **defaults})

    def needing(self, *names: str) -> Task:
        """Return the same task with further arguments that must be given."""
        return replace(self, needs=(*names, *self.needs))

    def refusing(self, *names: str) -> Task:
        """Return the same task with further arguments that are refused."""
        return replace(self, refuses=(*self.refuses, *names))


TEXT_TO_IMAGE = Task(
    "text2image",
    refuses=("image", "mask_image", "masked_image_latents", "padding_mask_crop", "strength", "mask_mode"),
)
IMAGE_TO_IMAGE = Task(
    "image2image",
    needs=("image",),
    refuses=("mask_image", "masked_image_latents", "padding_mask_crop", "mask_mode"),
    defaults={"strength": 0.8},
)
INPAINT = Task("inpaint", needs=("image", "mask_image"))


def documented(summary: str, *groups: type[Arguments]) -> Callable[[FunctionT], FunctionT]:
    """Give a call a docstring with the meaning of each argument in its signature."""
    docs = {
        entry.name: entry.metadata["doc"] for group in groups for entry in fields(group) if entry.metadata
    }

    def decorate(function: FunctionT) -> FunctionT:
        names = [name for name in inspect.signature(function).parameters if name in docs]
        lines = "\n".join(f"    {name}: {docs[name]}" for name in names)
        function.__doc__ = f"{summary}\n\n{lines}"
        return function

    return decorate


def make_call(
    given: Mapping[str, Any],
    task: Task,
    accepted: Collection[str],
    *,
    kind: type[Call] = Call,
    own: type[Arguments] | None = None,
    control: type[Arguments] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Call:
    """Sort a call's arguments into their groups. Unknown, missing and refused ones are answered by name.

    `accepted` are the names of the signature. `renamed` maps a name there to the argument that it means.
    """
    groups = [group for group in (kind, own, control) if group is not None]
    for name in given:
        if name not in accepted:
            raise InputError(f"{task.name} has no argument {name!r}. {_hint(name, accepted)}", parameter=name)
    for name in task.needs:
        if given.get(name) is None:
            raise InputError(f"{task.name} needs {name}, which was not given (or is None).", parameter=name)
    values = dict(given)
    for name, meaning in (renamed or {}).items():
        if name != meaning and name in values:
            if values.get(meaning) is not None:
                raise InputError(
                    f"Both {name} and {meaning} were given, which mean the same here. Give {name}.",
                    parameter=meaning,
                )
            values[meaning] = values.pop(name)
    for name in task.refuses:
        value, default = values.get(name), _default(groups, name)
        if value is not None and (default is None or value != default):
            raise InputError(
                f"{name} was given, which {task.name} does not take. Leave it out, or use the pipeline class "
                "of another task; from_pipe makes one with the same models.",
                parameter=name,
            )
    # None stands for the default of the task, or else of the argument.
    defaults = {name: _default(groups, name) for name in values} | dict(task.defaults)
    values = {name: defaults[name] if value is None else value for name, value in values.items()}
    values = {**task.defaults, **values}
    parts: dict[str, Any] = {
        slot: group(**_taken(values, group))
        for slot, group in (("own", own), ("control", control))
        if group is not None
    }
    return kind(**_taken(values, kind), **parts)


def _taken(values: Mapping[str, Any], group: type[Arguments]) -> dict[str, Any]:
    """Return the values of a group."""
    return {name: values[name] for name in group.names() if name in values}


def _default(groups: Sequence[type[Arguments]], name: str) -> Any:
    """Return the default of an argument, in the group that has it."""
    return next((entry.default for group in groups for entry in fields(group) if entry.name == name), None)


def _hint(name: str, accepted: Collection[str]) -> str:
    near = difflib.get_close_matches(name, accepted, n=1)
    near += [known for known in accepted if known.startswith(name)]
    return f"Did you mean {near[0]}?" if near else f"It takes {', '.join(accepted)}."


def check_call(call: Call, size_multiple: int, tensor_names: Collection[str]) -> None:
    """Refuse what cannot work whatever the family, before anything large is moved."""
    _check_numbers(call, size_multiple)
    choice("output_type", call.output_type, call.output_types)
    choice("mask_mode", call.mask_mode, ("soft", "binary"))
    if call.prompt_syntax not in (None, "weighted"):
        raise InputError(
            f"prompt_syntax={call.prompt_syntax!r} is unknown. Accepted are 'weighted', or None for plain "
            f"text.",
            parameter="prompt_syntax",
        )
    if call.padding_mask_crop is not None and call.output_type != "pil":
        raise InputError(
            f"padding_mask_crop pastes the result into the picture and so returns PIL, but "
            f"output_type={call.output_type!r}. Leave out one of the two.",
            parameter="padding_mask_crop",
        )
    _check_attention(call.cross_attention_kwargs)
    check_callback(call, tensor_names)


def choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a value that is not one of the known words."""
    if value not in known:
        *others, last = map(repr, known)
        raise InputError(
            f"{name}={value!r} is unknown. Accepted are {', '.join(others)} and {last}.", parameter=name
        )


def check_callback(call: Call, tensor_names: Collection[str]) -> None:
    """Refuse a callback that cannot be called, or that asks for tensors that the run does not have."""
    callback = call.callback_on_step_end
    if callback is not None and not callable(callback):
        raise InputError(
            f"callback_on_step_end is a {type(callback).__name__}. A function "
            "callback(run, step_index, timestep, tensors) is accepted.",
            parameter="callback_on_step_end",
        )
    unknown = [name for name in call.callback_tensors if name not in tensor_names]
    if unknown:
        given = "callback_on_step_end_tensor_inputs"
        if hasattr(callback, "tensor_inputs"):
            given = "callback_on_step_end"
        raise InputError(
            f"{given} names {', '.join(unknown)}. A callback can get {', '.join(tensor_names)}.",
            parameter=given,
        )


def check_texts(call: Call) -> None:
    """Refuse prompts and embeddings that contradict each other, and a call without any."""
    for name in ("prompt", "negative_prompt"):
        text, embeds = getattr(call, name), getattr(call, f"{name}_embeds")
        if text is not None and embeds is not None:
            raise InputError(
                f"Both {name} and {name}_embeds were given, which mean the same. Give one.",
                parameter=f"{name}_embeds",
            )
        if embeds is not None and (not isinstance(embeds, Tensor) or embeds.ndim != 3):
            given = f"of shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else type(embeds).__name__
            raise InputError(
                f"{name}_embeds is {given}. A tensor (prompts, tokens, width) is accepted, as encode_prompt "
                "returns it.",
                parameter=f"{name}_embeds",
            )
        check_text(name, text)
    if call.prompt is None and call.prompt_embeds is None:
        raise InputError(
            'Neither prompt nor prompt_embeds was given. Give one; prompt="" is fine for removing things.',
            parameter="prompt",
        )
    negative, embeds = call.negative_prompt, call.negative_prompt_embeds
    if isinstance(negative, Sequence) and not isinstance(negative, str) and len(negative) != call.prompts:
        raise InputError(
            f"negative_prompt has {len(negative)} entries for {call.prompts} prompts. Give one string, or a "
            "list with one entry for each prompt.",
            parameter="negative_prompt",
        )
    if embeds is not None and call.prompt_embeds is not None and embeds.shape != call.prompt_embeds.shape:
        raise InputError(
            f"prompt_embeds has the shape {tuple(call.prompt_embeds.shape)} and negative_prompt_embeds "
            f"{tuple(embeds.shape)}. They must match; pad the shorter text.",
            parameter="negative_prompt_embeds",
        )


def check_text(name: str, text: Any) -> None:
    """Refuse what is neither None, a string nor a list of strings."""
    is_list = isinstance(text, Sequence) and bool(text) and all(isinstance(part, str) for part in text)
    if text is not None and not isinstance(text, str) and not is_list:
        raise InputError(
            f"{name} is {text!r:.80}. A string or a list of strings is accepted.", parameter=name
        )


def _check_attention(given: Any) -> None:
    """Refuse keys of `cross_attention_kwargs` without a meaning here."""
    if given is None:
        return
    known = ("scale", "ip_adapter_masks")
    unknown = [key for key in given if key not in known] if isinstance(given, Mapping) else [given]
    scale = given.get("scale", 1.0) if isinstance(given, Mapping) else 1.0
    if unknown or not isinstance(scale, Real) or not math.isfinite(scale):
        raise InputError(
            f"cross_attention_kwargs is {given!r:.80}. Accepted are {{'scale': number}}, a factor for all "
            "LoRA adapters in this call, and ip_adapter_masks. Leave out the rest.",
            parameter="cross_attention_kwargs",
        )


def _check_numbers(call: Call, size_multiple: int) -> None:
    whole = dict.fromkeys(("num_inference_steps", "num_images_per_prompt", "reuse_deep_features"), 1)
    whole |= {"padding_mask_crop": 0, "clip_skip": 0}
    sides = dict.fromkeys(("height", "width", "tile_size"), size_multiple)
    for name, least in (whole | sides).items():
        value = getattr(call, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (is_whole and value >= least):
            raise InputError(f"{name}={value!r} is not a whole number of {least} or more.", parameter=name)
    for name in ("strength", "guidance_scale", "guidance_rescale", "eta"):
        require_finite(name, getattr(call, name))
    for name in ("height", "width"):
        value = getattr(call, name)
        if value is not None and value % size_multiple:
            nearest = max(size_multiple, round(value / size_multiple) * size_multiple)
            raise InputError(
                f"{name}={value} is not a multiple of {size_multiple}. The nearest is {nearest}.",
                parameter=name,
            )
    if not 0 <= call.strength <= 1:
        raise InputError(f"strength={call.strength} is outside 0 to 1.", parameter="strength")
    check_interval(call.guidance_interval)
    if call.timesteps is not None and call.sigmas is not None:
        raise InputError(
            "Both timesteps and sigmas were given, and each is a whole schedule. Give one.",
            parameter="timesteps",
        )
    source = call.generator
    for each in source if isinstance(source, Sequence) else [source]:
        if each is not None and not isinstance(each, torch.Generator):
            raise InputError(
                f"generator is {each!r:.80}. A torch.Generator is accepted, or a list with one for each "
                "picture. For a seed give torch.Generator().manual_seed(seed).",
                parameter="generator",
            )


def require_finite(name: str, value: Any) -> None:
    """Refuse what is not a finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name}={value!r} is not a finite number.", parameter=name)


def check_interval(interval: Any) -> None:
    """Refuse a `guidance_interval` that is not an interval of noise levels."""
    if interval is None:
        return
    is_pair = isinstance(interval, list | tuple) and len(interval) == 2
    if not is_pair or not all(isinstance(edge, Real) and not isinstance(edge, bool) for edge in interval):
        raise InputError(
            f"guidance_interval is {interval!r:.80}. Two noise levels from 0 (clean) to 1 (noise) are "
            "accepted, the lower one first, such as (0.2, 1.0). Leave it out to guide in all steps.",
            parameter="guidance_interval",
        )
    if not 0 <= interval[0] < interval[1] <= 1:
        raise InputError(
            f"guidance_interval={tuple(interval)} is not an interval of noise levels. They go from 0 (clean) "
            "to 1 (noise); give the lower one first, such as (0.2, 1.0).",
            parameter="guidance_interval",
        )
