from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from scheduler_grid import assert_same, drain, drive_plan, generators, noise_for

from retouch import schedulers
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    by_name,
)
from retouch.schedulers.scheduler import Scheduler

ALL = [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler]
ALL += [LCMScheduler, TCDScheduler]


@pytest.mark.parametrize("make", ALL)
def test_two_plans_of_one_scheduler_do_not_disturb_each_other(make: Any) -> None:
    scheduler = make()
    settings = copy.deepcopy(scheduler.settings)

    def run(steps: int, seed: int, start: int) -> Any:
        plan = scheduler.plan(steps, generator=generators(None, seed), eta=0.5).after(start)
        return drive_plan(plan, shape=(1, 4, 4 + seed, 4), noised_first=start > 0)

    alone = [drain(run(6, 1, 0)), drain(run(8, 2, 2))]
    one, other = run(6, 1, 0), run(8, 2, 2)
    pairs = list(zip(one, other, strict=False))
    rest = [*one, *other]  # the steps after the end of the shorter one
    together = [pairs[-1][0], rest[-1] if rest else pairs[-1][1]]
    for trace, expected in zip(together, alone, strict=True):
        assert_same(trace, expected, tolerance=0)
    assert scheduler.settings == settings


@pytest.mark.parametrize("make", ALL)
def test_a_plan_forgets_when_it_starts_again(make: Any) -> None:
    plan = make().plan(6)
    results = []
    for _ in range(2):
        plan.generator = generators(None)
        results.append(drain(drive_plan(plan)))
    assert_same(*results, tolerance=0)


@pytest.mark.parametrize("make", ALL)
def test_steps_are_linked_and_keep_their_place(make: Any) -> None:
    plan = make().plan(7)
    steps = list(plan)
    rest = plan.after(2)
    assert [step.index for step in steps] == list(range(len(plan)))
    assert [step.next for step in steps] == [*steps[1:], None]
    assert [step.is_last for step in steps] == [False] * (len(steps) - 1) + [True]
    assert list(rest) == steps[2:] and len(rest) == len(steps) - 2
    assert torch.equal(rest.timesteps, plan.timesteps[2:])
    assert len(rest.after(1)) == len(rest) - 1
    levels = [plan.level(step) for step in steps]
    assert levels == [int(step.timestep) / 1000 for step in steps] or make in (
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
    )
    assert levels == sorted(levels, reverse=True) or make is PNDMScheduler
    assert all(0 <= level <= 1 for level in levels)


def test_diffusers_style_calls_in_any_order() -> None:
    """Any timestep of the schedule works, in any order, as training and inversion code needs."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    sample, prediction = noise_for((1, 4, 4, 4), 1), noise_for((1, 4, 4, 4), 2)
    first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
    late = scheduler.step(prediction, int(last), sample).prev_sample
    early = scheduler.step(prediction, first, sample, return_dict=False)[0]
    plan = scheduler.plan(5)
    steps = list(plan)
    assert torch.equal(late, plan.advance(prediction, steps[-1], sample))
    assert torch.equal(early, plan.advance(prediction, steps[0], sample))
    with pytest.raises(InputError, match="not among") as caught:
        scheduler.step(prediction, 999, sample)
    assert caught.value.parameter == "timestep"


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_starts_in_the_middle_by_timestep_alone(make: Any) -> None:
    """Heun has this timestep twice; its first place is in the middle of a step."""
    scheduler = make()
    scheduler.set_timesteps(6)
    sample, noise = noise_for((2, 4, 4, 4), 1), noise_for((2, 4, 4, 4), 2)
    plan = scheduler.plan(6).after(2)
    third = next(iter(plan))
    noised = scheduler.add_noise(sample, noise, third.timestep.repeat(2))
    assert torch.equal(noised, plan.noised(sample, noise, third))
    assert torch.equal(scheduler.scale_model_input(noised, third.timestep), plan.scale_input(noised, third))
    moved = scheduler.step(noise, third.timestep, noised).prev_sample
    assert torch.equal(moved, plan.advance(noise, third, noised))
    assert scheduler.step_index == 3


def test_rows_may_be_noised_to_different_levels() -> None:
    sample, noise = noise_for((2, 4, 4, 4), 1), noise_for((2, 4, 4, 4), 2)
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler()):
        scheduler.set_timesteps(5)
        timesteps = scheduler.timesteps[[1, 4]]
        both = scheduler.add_noise(sample, noise, timesteps)
        for row in range(2):
            alone = scheduler.add_noise(sample[row : row + 1], noise[row : row + 1], timesteps[row : row + 1])
            assert torch.equal(both[row : row + 1], alone)


def test_config_is_a_read_only_mapping_that_keeps_unknown_keys() -> None:
    config = EulerDiscreteScheduler.from_config(
        {"beta_end": 0.5, "house_style": [1], "clip_sample": True}
    ).config
    assert config.beta_end == 0.5 and config["house_style"] == [1] and config.get("nothing") is None
    assert not hasattr(config, "nothing") and hasattr(config, "steps_offset")
    changes = [
        lambda: config.update(beta_end=1),
        lambda: config.__setitem__("beta_end", 1),
        lambda: setattr(config, "beta_end", 1),
        lambda: config.pop("beta_end"),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert DDIMScheduler.from_config(config, beta_end=0.7).config.beta_end == 0.7
    assert DDIMScheduler.from_config(config).config.house_style == [1]


def test_a_setting_of_another_scheduler_stays_without_effect() -> None:
    karras = EulerDiscreteScheduler(use_karras_sigmas=True)
    ancestral = EulerAncestralDiscreteScheduler.from_config(karras.config)
    assert ancestral.config.use_karras_sigmas is True
    plain = EulerAncestralDiscreteScheduler().plan(5).timesteps
    assert torch.equal(ancestral.plan(5).timesteps, plain)
    back = EulerDiscreteScheduler.from_config(ancestral.config)
    assert torch.equal(back.plan(5).timesteps, karras.plan(5).timesteps)


def test_reads_a_local_folder(tmp_path: Path) -> None:
    EulerDiscreteScheduler(steps_offset=1).save_pretrained(tmp_path / "scheduler")
    found = EulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler", beta_end=0.5)
    assert found.config.steps_offset == 1 and found.config.beta_end == 0.5
    assert type(Scheduler.from_pretrained(str(tmp_path / "scheduler"))) is EulerDiscreteScheduler
    with pytest.raises(CheckpointError, match='subfolder="scheduler"'):
        Scheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        Scheduler.from_pretrained(tmp_path / "scheduler")


def test_reads_a_repository_of_the_hub(tmp_path: Path, hub: Any) -> None:
    DDIMScheduler(steps_offset=1).save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    hub.add("org/name", tmp_path)
    found = Scheduler.from_pretrained("org/name", subfolder="scheduler")
    assert type(found) is DDIMScheduler and found.config.steps_offset == 1
    with pytest.raises(CheckpointError):
        Scheduler.from_pretrained("org/other", subfolder="scheduler")


def test_names() -> None:
    assert by_name("DDIMScheduler") is DDIMScheduler
    with pytest.raises(ConfigError, match=r"'NoScheduler'.*DDIMScheduler.*TCDScheduler"):
        by_name("NoScheduler")
    with pytest.raises(AttributeError):
        schedulers.NoScheduler  # noqa: B018
    assert set(schedulers.__all__) >= {make.__name__ for make in ALL}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (DDIMScheduler, {"prediction_type": "flow"}, "'epsilon', 'sample', 'v_prediction'"),
        (DDIMScheduler, {"timestep_spacing": "even"}, "'leading'"),
        (DDIMScheduler, {"beta_schedule": "laplace"}, "'scaled_linear'"),
        (DDIMScheduler, {"use_karras_sigmas": True}, "from_config"),
        (EulerDiscreteScheduler, {"timestep_type": "continuous"}, "'discrete'"),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "both set"),
        (PNDMScheduler, {"prediction_type": "sample"}, "'epsilon', 'v_prediction'"),
    ],
)
def test_settings_that_are_not_supported_are_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**settings)
    assert caught.value.parameter == list(settings)[-1]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (DDIMScheduler, {}, "exactly one of"),
        (DDIMScheduler, {"num_inference_steps": 1001}, "1 to 1000"),
        (EulerDiscreteScheduler, {"num_inference_steps": 1001}, "1 to 1000"),
        (DDIMScheduler, {"num_inference_steps": 0}, "1 to 1000"),
        (DDIMScheduler, {"timesteps": [900, 100]}, r"does not take custom timesteps.*DDPM.*Euler.*LCM"),
        (DDPMScheduler, {"sigmas": [9.0, 0.0]}, r"does not take custom sigmas.*EulerDiscreteScheduler"),
        (DDPMScheduler, {"timesteps": [100, 900]}, "smaller than the one before"),
        (DDPMScheduler, {"timesteps": [1000, 900]}, "0 to 999"),
        (DDPMScheduler, {"timesteps": []}, "at least 1"),
        (EulerDiscreteScheduler, {"sigmas": [1.0]}, "at least 2"),
        (EulerDiscreteScheduler, {"sigmas": [float("nan"), 0.0]}, "finite"),
        (EulerDiscreteScheduler, {"num_inference_steps": 2, "timesteps": [9, 1]}, "exactly one of"),
        (LCMScheduler, {"num_inference_steps": 51}, "original_inference_steps"),
        (PNDMScheduler, {"num_inference_steps": 3}, "skip_prk_steps=True"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(make: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make().plan(**given)
    assert caught.value.parameter == list(given or {"num_inference_steps": None})[-1]


def test_karras_and_custom_timesteps_contradict_each_other() -> None:
    with pytest.raises(InputError, match="use_karras_sigmas=False") as caught:
        EulerDiscreteScheduler(use_karras_sigmas=True).plan(timesteps=[900, 100])
    assert caught.value.parameter == "timesteps"


def test_tcd_refuses_an_eta_outside_its_range() -> None:
    plan = TCDScheduler().plan(2, eta=1.5)
    latents = noise_for((1, 4, 4, 4), 1)
    with pytest.raises(InputError, match=r"eta is 1\.5") as caught:
        plan.advance(latents, next(iter(plan)), latents)
    assert caught.value.parameter == "eta"


def test_saved_settings_are_plain_json(tmp_path: Path) -> None:
    DDIMScheduler(trained_betas=torch.linspace(0.1, 0.2, 3), num_train_timesteps=3).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == "DDIMScheduler" and len(written["trained_betas"]) == 3
    assert "_use_default_values" not in written
