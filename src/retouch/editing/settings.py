"""The sampler names that people use, as schedulers; and steps and strength as the length of a schedule."""

from __future__ import annotations

import difflib
import math
from typing import Any

from retouch.errors import InputError
from retouch.schedulers import by_name

_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_LATENT = {"clip_sample": False}  # some checkpoints' files leave it out, and the default is for pixels
# Settings that distinguish samplers of one class are set in each: a checkpoint may come with any value.
_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", _LATENT),
    "ddpm": ("DDPMScheduler", _LATENT),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", _MULTISTEP),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 3m": ("DPMSolverMultistepScheduler", {**_MULTISTEP, "solver_order": 3}),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", _MULTISTEP),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
_TAKE_KARRAS = (
    *("euler", "heun", "lms", "dpm2", "dpm2 a", "unipc"),
    *("dpm++ 2m", "dpm++ 2m sde", "dpm++ 3m", "dpm++ 2s"),
)
# With few steps it helps to begin at pure noise, which not every checkpoint's file says.
_TAKE_TRAILING = ("ddim", "euler", "dpm++ 2m", "unipc")
# Spellings of other programs, after "_" has become a space, "k_" is gone and "dpmpp" is "dpm++".
_SPELLINGS = {
    "euler ancestral": "euler a",
    "dpm 2": "dpm2",
    "dpm 2 a": "dpm2 a",
    "dpm 2 ancestral": "dpm2 a",
    "dpm2 ancestral": "dpm2 a",
    "uni pc": "unipc",
}


def sampler_names() -> list[str]:
    """Return all names that `scheduler_named` takes."""
    variants = [f"{name} karras" for name in _TAKE_KARRAS] + [f"{name} trailing" for name in _TAKE_TRAILING]
    return [*_SAMPLERS, *variants]


def scheduler_named(name: str, current: Any) -> Any:
    """Return the scheduler of this name, with the settings of the checkpoint's own."""
    class_name, changes = sampler_of(name)
    return by_name(class_name).from_config(current.config, **changes)


def sampler_of(name: str) -> tuple[str, dict[str, Any]]:
    """Return the class of a sampler's scheduler and the settings that make it this sampler."""
    words = " ".join(name.lower().replace("_", " ").replace("dpmpp", "dpm++").split()).removeprefix("k ")
    is_karras, is_trailing = words.endswith(" karras"), words.endswith(" trailing")
    plain = words.removesuffix(" karras").removesuffix(" trailing")
    plain = _SPELLINGS.get(plain, plain)
    takes = (not is_karras or plain in _TAKE_KARRAS) and (not is_trailing or plain in _TAKE_TRAILING)
    if plain not in _SAMPLERS or not takes:
        near = difflib.get_close_matches(words, sampler_names(), n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"scheduler={name!r} is unknown. {hint}Known: {', '.join(sampler_names())}.",
            parameter="scheduler",
        )
    class_name, changes = _SAMPLERS[plain]
    if plain in _TAKE_KARRAS:
        changes = {**changes, "use_karras_sigmas": is_karras}
    if is_trailing:
        changes = {**changes, "timestep_spacing": "trailing"}
    return class_name, changes


def scheduled_steps(steps: int, strength: float) -> int:
    """Return the length of a schedule from which `strength` leaves exactly `steps` to run."""
    length = max(steps, math.floor(steps / strength))
    while int(length * strength) < steps:
        length += 1
    return length
