"""The start of a run: the part of the schedule that `strength` leaves, and the first latents."""

from __future__ import annotations

import math

from torch import Tensor

from retouch.errors import InputError
from retouch.schedulers.plan import Plan


def shorten(plan: Plan, num_inference_steps: int, strength: float) -> tuple[Plan, int]:
    """Keep the last `strength` of the schedule; return it with the number of requested steps in it."""
    kept = min(int(num_inference_steps * strength), num_inference_steps)
    skipped = (num_inference_steps - kept) * plan.order
    # A custom schedule of a method of order 2 counts each evaluation as a step, as the reference does.
    if kept < 1 or skipped >= len(plan):
        fewest = max(1, num_inference_steps - (len(plan) - 1) // plan.order)
        lowest = math.ceil(1000 * fewest / num_inference_steps) / 1000
        enough = next((steps for steps in range(1, 501) if int(steps * strength) >= 1), None)
        raise InputError(
            f"strength={strength} leaves none of the {num_inference_steps} steps to run. It is the part of "
            f"them that runs, and at least one must; use strength={lowest} or more"
            + (f", or {enough} steps or more." if enough and kept < 1 else "."),
            parameter="strength",
        )
    return plan.after(skipped), kept


def first_latents(plan: Plan, noise: Tensor, original: Tensor | None = None) -> Tensor:
    """Return pure noise, or `original` with the noise at which `plan` starts."""
    if original is None:
        return noise * plan.initial_sigma
    return plan.noised(original, noise, next(iter(plan)))


def window(plan: Plan, start: float | None, end: float | None, num_train_timesteps: int) -> Plan:
    """Return the part of a schedule between two fractions of the noise levels, for stages that share it."""
    if start is not None:
        cutoff = round(num_train_timesteps * (1 - start))
        count = sum(1 for step in plan if float(step.timestep) < cutoff)
        if plan.order == 2 and count % 2 == 0:  # not between the two halves of one step
            count += 1
        plan = plan.after(len(plan) - count)
    if end is not None:
        cutoff = round(num_train_timesteps * (1 - end))
        plan = plan.until(sum(1 for step in plan if float(step.timestep) >= cutoff))
    if len(plan) == 0:
        raise InputError(
            f"denoising_start={start} and denoising_end={end} leave no step to run. Take more steps, or a "
            "wider part of the schedule.",
            parameter="denoising_start" if start is not None else "denoising_end",
        )
    return plan
