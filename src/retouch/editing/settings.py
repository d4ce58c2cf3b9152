"""The words people use for how to sample, in the terms of schedulers and schedules."""

from __future__ import annotations

import difflib
import math
from typing import Any

from retouch.errors import InputError
from retouch.schedulers import by_name

_KARRAS = {"use_karras_sigmas": True}
_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
_TAKE_KARRAS = (
    "euler",
    "heun",
    "lms",
    "dpm2",
    "dpm2 a",
    "dpm++ 2m",
    "dpm++ 2m sde",
    "dpm++ 3m",
    "dpm++ 2s",
    "unipc",
)
_SPELLINGS = {
    "euler ancestral": "euler a",
    "k_euler": "euler",
    "k_euler_a": "euler a",
    "dpmpp 2m": "dpm++ 2m",
}


def sampler_names() -> list[str]:
    """All names that `scheduler_named` takes."""
    return [*_SAMPLERS, *(f"{name} karras" for name in _TAKE_KARRAS)]


def scheduler_named(name: str, current: Any) -> Any:
    """The scheduler that people call so, with the settings of the checkpoint's own."""
    words = " ".join(name.lower().replace("_", " ").replace("dpmpp", "dpm++").split())
    plain = words.removesuffix(" karras")
    plain = _SPELLINGS.get(plain, plain)
    if plain not in _SAMPLERS or (words.endswith(" karras") and plain not in _TAKE_KARRAS):
        near = difflib.get_close_matches(words, sampler_names(), n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"scheduler={name!r} is unknown. {hint}Known: {', '.join(sampler_names())}.")
    class_name, changes = _SAMPLERS[plain]
    return by_name(class_name).from_config(
        current.config, **changes, **(_KARRAS if words.endswith(" karras") else {})
    )


def scheduled_steps(steps: int, strength: float) -> int:
    """The length of a schedule of which `strength` leaves exactly `steps` to run."""
    if steps < 1:
        raise InputError(f"steps={steps} leaves nothing to run; give 1 or more.")
    if not 0 < strength <= 1:
        raise InputError(f"strength={strength} is outside 0 to 1 (0 excluded); 1 repaints from noise.")
    length = max(steps, math.floor(steps / strength))
    while int(length * strength) < steps:
        length += 1
    return length
