"""UnCLIP, the scheduler of Kandinsky's prior, compared with diffusers: all numbers of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from closeness import SCHEDULER, TABLE
from published_configs import KANDINSKY_SCHEDULERS
from scheduler_grid import compare, difference, generators, grid, made_up_model, noise_for
from torch import Tensor

from retouch.errors import ConfigError
from retouch.schedulers import UnCLIPScheduler
from retouch.schedulers.foreign import as_plan

# The shape of a prior's embeddings, and of latents with a predicted variance.
SHAPE = (2, 24, 1, 1)


def reference_run(config: dict[str, Any], steps: int, outputs: int, rows: int | None) -> list[Tensor]:
    """Run it as the prior's pipeline does, with each step's next timestep."""
    scheduler = diffusers.UnCLIPScheduler(**config)
    scheduler.set_timesteps(steps)
    generator, latents = generators(rows), noise_for(SHAPE, 2)
    trace = []
    for index, timestep in enumerate(scheduler.timesteps):
        after = scheduler.timesteps[index + 1] if index + 1 < steps else None
        prediction = made_up_model(latents, timestep, outputs)
        result = scheduler.step(prediction, timestep, latents, prev_timestep=after, generator=generator)
        latents = result.prev_sample
        trace += [result.pred_original_sample, latents]
    return trace


def our_run(plan: Any, outputs: int) -> list[Tensor]:
    latents, trace = noise_for(SHAPE, 2), []
    for step in plan:
        prediction = made_up_model(latents, step.timestep, outputs)
        latents, original = plan.advance_with_original(prediction, step, latents)
        trace += [original, latents]
    return trace


@pytest.mark.parametrize("settings", grid(
    prediction_type=["epsilon", "sample"],
    variance_type=["fixed_small_log", "learned_range"],
    clip_sample=[True, False],
), ids=str)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 3, 7, 25, 1000])
def test_every_number(settings: dict[str, Any], steps: int) -> None:
    outputs = 2 if settings["variance_type"] == "learned_range" else 1
    scheduler = UnCLIPScheduler(**settings)
    plan = scheduler.plan(steps, generator=generators(None))
    assert plan.timesteps.tolist() == timesteps_of_the_reference(settings, steps)
    for mine, reference in zip(
        our_run(plan, outputs), reference_run(settings, steps, outputs, None), strict=True
    ):
        assert difference(mine, reference) <= SCHEDULER


def timesteps_of_the_reference(settings: dict[str, Any], steps: int) -> list[int]:
    scheduler = diffusers.UnCLIPScheduler(**settings)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def test_timesteps_for_any_number_of_steps() -> None:
    for steps in range(2, 1001):
        assert UnCLIPScheduler().plan(steps).timesteps.tolist() == timesteps_of_the_reference({}, steps)


def test_published_settings_with_a_generator_for_each_row() -> None:
    settings = KANDINSKY_SCHEDULERS["prior"]
    plan = UnCLIPScheduler(**settings).plan(25, generator=generators(2))
    for mine, reference in zip(our_run(plan, 1), reference_run(settings, 25, 1, 2), strict=True):
        assert difference(mine, reference) <= SCHEDULER


def test_the_decoder_s_published_settings() -> None:
    compare("DDPMScheduler", KANDINSKY_SCHEDULERS["decoder"], 10, outputs=2, originals=True)


def test_a_single_step_starts_from_noise() -> None:
    """The reference divides by zero here."""
    plan = UnCLIPScheduler(prediction_type="sample", clip_sample=False).plan(1)
    assert plan.timesteps.tolist() == [999]
    original = torch.randn(SHAPE)
    assert difference(plan.advance(original, next(iter(plan)), torch.randn(SHAPE)), original) < 1e-4


def test_a_scheduler_of_diffusers_goes_where_the_plan_goes() -> None:
    settings = KANDINSKY_SCHEDULERS["prior"]
    plan = as_plan(diffusers.UnCLIPScheduler(**settings), 6, generator=generators(None))
    for mine, reference in zip(our_run(plan, 1), reference_run(settings, 6, 1, None), strict=True):
        assert torch.equal(mine, reference)


def test_code_written_for_diffusers() -> None:
    scheduler = UnCLIPScheduler(prediction_type="sample")
    scheduler.set_timesteps(5)
    latents, generator = noise_for(SHAPE, 2), generators(None)
    for index, timestep in enumerate(scheduler.timesteps):
        after = scheduler.timesteps[index + 1] if index < 4 else None
        prediction = made_up_model(latents, timestep)
        result = scheduler.step(
            prediction, timestep=timestep, sample=latents, generator=generator, prev_timestep=after
        )
        latents = result.prev_sample
    reference = reference_run({"prediction_type": "sample"}, 5, 1, None)
    assert difference(latents, reference[-1]) <= SCHEDULER
    original, noise = noise_for(SHAPE, 3), noise_for(SHAPE, 4)
    when = torch.tensor([700, 3])
    expected = diffusers.UnCLIPScheduler().add_noise(original, noise, when)
    assert difference(scheduler.add_noise(original, noise, when), expected) <= TABLE


def test_config_both_ways(tmp_path: Path) -> None:
    ours = UnCLIPScheduler(**KANDINSKY_SCHEDULERS["prior"])
    ours.save_pretrained(tmp_path)
    theirs = diffusers.UnCLIPScheduler.from_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    for config in (written, theirs.config, UnCLIPScheduler.from_config(theirs.config).config):
        assert {key: value for key, value in config.items() if not key.startswith("_")} == {
            **KANDINSKY_SCHEDULERS["prior"],
            "beta_schedule": "squaredcos_cap_v2",
        }
    with pytest.raises(ConfigError, match="linear"):
        UnCLIPScheduler(beta_schedule="linear")
