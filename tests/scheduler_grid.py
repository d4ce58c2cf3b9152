"""Runs one of our schedulers and its counterpart in diffusers side by side and compares every number.

`compare` drives both as a pipeline would: the same first noise, the same made-up model, the original
noised to where each step ends. Both plain and diffusers-style code of ours can be driven.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from closeness import SCHEDULER, TABLE
from torch import Generator, Tensor

from retouch import schedulers

SHAPE = (2, 4, 6, 5)


def made_up_model(latents: Tensor, timestep: Tensor, outputs: int = 1) -> Tensor:
    """A fixed mix of the channels and the timestep; `outputs` 2 adds what a learned variance needs."""
    channels = latents.shape[1]
    weights = torch.randn(channels * outputs, channels, generator=Generator().manual_seed(7)) / channels**0.5
    mixed = torch.einsum("oc,bchw->bohw", weights.to(latents), latents)
    return torch.tanh(mixed + 0.3 * torch.cos(timestep.float() / 150).to(latents))


def noise_for(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def generators(count: int | None, seed: int = 11) -> Generator | list[Generator]:
    """One generator, or a list with one for each row."""
    if count is None:
        return Generator().manual_seed(seed)
    return [Generator().manual_seed(seed + row) for row in range(count)]


def add_noise(scheduler: Any, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Call the method that noises, which has another name for flow matching."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(original, timesteps, noise)
    return scheduler.add_noise(original, noise, timesteps)


@dataclass
class Trace:
    """All that one run computed."""

    initial_sigma: float
    timesteps: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    originals: list[Tensor | None] = field(default_factory=list)
    noised: list[Tensor] = field(default_factory=list)


def run_diffusers_style(
    scheduler: Any,
    steps: int | None,
    *,
    start: int = 0,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    generator: Any = None,
    eta: float = 0.0,
    outputs: int = 1,
    **schedule: Any,
) -> Trace:
    """The loop of a diffusers pipeline, for a scheduler of diffusers or for ours with the same methods."""
    given = {"num_inference_steps": steps} if steps is not None else {}
    scheduler.set_timesteps(**given, **schedule)
    timesteps = scheduler.timesteps[start:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    accepted = inspect.signature(scheduler.step).parameters
    extra = {key: value for key, value in {"eta": eta, "generator": generator}.items() if key in accepted}

    original, noise = noise_for(shape, 1).to(dtype), noise_for(shape, 2).to(dtype)
    initial_sigma = getattr(scheduler, "init_noise_sigma", 1.0)
    trace = Trace(float(initial_sigma), timesteps)
    if start:
        latents = add_noise(scheduler, original, noise, timesteps[:1].repeat(shape[0]))
    else:
        latents = noise * initial_sigma
    trace.latents.append(latents)
    for position, timestep in enumerate(timesteps):
        scales = hasattr(scheduler, "scale_model_input")
        trace.inputs.append(scheduler.scale_model_input(latents, timestep) if scales else latents)
        prediction = made_up_model(trace.inputs[-1], timestep, outputs)
        result = scheduler.step(prediction, timestep, latents, **extra)
        latents = result.prev_sample
        trace.latents.append(latents)
        trace.originals.append(getattr(result, "pred_original_sample", None))
        if position + 1 < len(timesteps):
            following = timesteps[position + 1 : position + 2]
            trace.noised.append(add_noise(scheduler, original, noise, following))
    return trace


def run_plan(
    scheduler: Any,
    steps: int | None,
    *,
    start: int = 0,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    generator: Any = None,
    eta: float = 0.0,
    outputs: int = 1,
    **schedule: Any,
) -> Trace:
    plan = scheduler.plan(steps, generator=generator, eta=eta, **schedule).after(start)
    return drain(drive_plan(plan, shape=shape, dtype=dtype, outputs=outputs, noised_first=start > 0))


def drive_plan(
    plan: Any,
    *,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    outputs: int = 1,
    noised_first: bool = False,
) -> Iterator[Trace]:
    """Yield the growing trace after each step, so that two runs can be interleaved."""
    original, noise = noise_for(shape, 1).to(dtype), noise_for(shape, 2).to(dtype)
    trace = Trace(float(plan.initial_sigma), plan.timesteps)
    latents = plan.noised(original, noise, next(iter(plan))) if noised_first else noise * plan.initial_sigma
    trace.latents.append(latents)
    assert len(plan) == len(plan.timesteps)
    for step in plan:
        trace.inputs.append(plan.scale_input(latents, step))
        prediction = made_up_model(trace.inputs[-1], step.timestep, outputs)
        latents, predicted = plan.advance_with_original(prediction, step, latents)
        trace.latents.append(latents)
        trace.originals.append(predicted)
        if not step.is_last:
            trace.noised.append(plan.noised(original, noise, step.next))
        yield trace


def drain(runs: Iterator[Trace]) -> Trace:
    *_, last = runs
    return last


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value (1 where all are smaller)."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, f"{ours.dtype} and {theirs.dtype}"
    ours, theirs = ours.double(), theirs.double()
    assert torch.equal(ours.isnan(), theirs.isnan()), "NaN in one of them only"
    return float((ours - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max().clamp(min=1))


def assert_same(ours: Trace, theirs: Trace, tolerance: float = SCHEDULER, originals: bool = False) -> float:
    """Fail unless two runs agree; returns the largest relative difference found."""
    assert ours.timesteps.dtype == theirs.timesteps.dtype
    assert torch.equal(ours.timesteps, theirs.timesteps), f"{ours.timesteps}\n{theirs.timesteps}"
    largest = abs(ours.initial_sigma - theirs.initial_sigma) / max(theirs.initial_sigma, 1.0)
    assert largest <= TABLE, f"initial sigma {ours.initial_sigma} instead of {theirs.initial_sigma}"
    for what in ("inputs", "latents", "noised") + (("originals",) if originals else ()):
        mine, reference = getattr(ours, what), getattr(theirs, what)
        assert len(mine) == len(reference)
        for position, pair in enumerate(zip(mine, reference, strict=True)):
            found = difference(*pair)
            assert found <= tolerance, f"{what}[{position}] differ by {found:.2e} (relative)"
            largest = max(largest, found)
    return largest


def compare(
    name: str,
    config: dict[str, Any],
    steps: int | None,
    *,
    tolerance: float = SCHEDULER,
    originals: bool = False,
    rows: int | None = None,
    **options: Any,
) -> float:
    """Run both libraries' scheduler `name` and compare; `rows` gives each row its own generator.

    Ours runs twice, once as a plan and once through its diffusers-style methods.
    """
    theirs = getattr(diffusers, name)(**config)
    reference = run_diffusers_style(theirs, steps, generator=generators(rows), **options)
    ours = getattr(schedulers, name)(**config)
    plain = run_plan(ours, steps, generator=generators(rows), **options)
    styled = run_diffusers_style(ours, steps, generator=generators(rows), **options)
    return max(
        assert_same(plain, reference, tolerance, originals),
        assert_same(styled, reference, tolerance, originals),
    )


def grid(**axes: list[Any]) -> list[Any]:
    """Every combination of the axes, as dicts for `pytest.mark.parametrize`."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
