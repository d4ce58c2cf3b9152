"""The names that people use for samplers, the length of schedules, and the checks of options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as some

from retouch.editing.options import Options
from retouch.editing.settings import sampler_names, scheduled_steps, scheduler_named
from retouch.errors import InputError
from retouch.schedulers import by_name

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("name", "class_name", "flags"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False}),
        ("DDPM", "DDPMScheduler", {"clip_sample": False}),
        ("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
        ("Euler", "EulerDiscreteScheduler", {"use_karras_sigmas": False}),
        ("Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
        ("k_euler", "EulerDiscreteScheduler", {}),
        ("k_euler_a", "EulerAncestralDiscreteScheduler", {}),
        ("Heun", "HeunDiscreteScheduler", {}),
        ("LMS Karras", "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM2", "KDPM2DiscreteScheduler", {"use_karras_sigmas": False}),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", {}),
        (
            "DPM++ 2M Karras",
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++", "solver_order": 2},
        ),
        (
            " dpmpp_2m ",
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": False, "algorithm_type": "dpmsolver++", "solver_order": 2},
        ),
        (
            "DPM++ 2M trailing",
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": False, "timestep_spacing": "trailing", "solver_order": 2},
        ),
        ("ddim_trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("dpm++ 3m", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("dpm++ 2s", "DPMSolverSinglestepScheduler", {"solver_order": 2}),
        ("UniPC", "UniPCMultistepScheduler", {}),
        ("uni_pc", "UniPCMultistepScheduler", {}),
        ("LCM", "LCMScheduler", {}),
        ("TCD", "TCDScheduler", {}),
    ],
)
def test_names(name: str, class_name: str, flags: dict[str, Any]) -> None:
    """The name decides, whatever the checkpoint's own scheduler; its betas stay."""
    ones = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    for own in ({}, ones, {"prediction_type": "v_prediction", "trained_betas": None}):
        current = by_name("DPMSolverMultistepScheduler" if own is ones else "PNDMScheduler").from_config(
            SD | own
        )
        found = scheduler_named(name, current)
        assert type(found).__name__ == class_name
        assert {key: found.config[key] for key in flags} == flags
        assert all(found.config[key] == value for key, value in SD.items())
        assert found.config["prediction_type"] == own.get("prediction_type", "epsilon")


def test_every_name_is_taken_and_makes_another_sampler() -> None:
    current = by_name("PNDMScheduler").from_config(SD)
    found = [scheduler_named(name, current) for name in sampler_names()]
    told = {(type(each).__name__, repr(sorted(dict(each.config).items(), key=str))) for each in found}
    # PNDM and PLMS are the same with some checkpoints.
    assert len(told) >= len(found) - 1 and len(sampler_names()) == len(set(sampler_names()))


@pytest.mark.parametrize("name", ["dpm++ 2n", "ddim karras", "", "karras", "lcm karras", "DPM++ SDE"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(InputError, match=r"is unknown\..*Known: ddim, ddpm"):
        scheduler_named(name, by_name("DDIMScheduler").from_config(SD))
    if name == "dpm++ 2n":
        with pytest.raises(InputError, match=r"Did you mean .*dpm\+\+ 2m"):
            scheduler_named(name, by_name("DDIMScheduler").from_config(SD))


@given(some.integers(1, 150), some.floats(0.01, 1))
def test_strength_leaves_the_steps_that_were_asked_for(steps: int, strength: float) -> None:
    length = scheduled_steps(steps, strength)
    assert int(length * strength) == steps and length >= steps


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"stepz": 3}, "no option 'stepz'. Did you mean steps"),
            ({"qqq": 3}, "no option 'qqq'. There are prompt, negative_prompt"),
            ({"steps": 0}, "steps=0 is not a whole number of 1"),
            ({"steps": 2.5}, r"steps=2.5 is not a whole number"),
            ({"steps": True}, "steps=True is not a whole number"),
            ({"variations": 0}, "variations=0"),
            ({"strength": 0}, "strength=0 is outside"),
            ({"strength": 1.5}, r"strength=1.5 is outside"),
            ({"strength": float("nan")}, "strength=nan is not a finite"),
            ({"strength": "much"}, "strength='much' is not a finite"),
            ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": 2**63 - 1}, "seed=.* is out of range"),
            ({"seed": "1"}, "seed='1' is not a whole"),
            ({"size": 63}, "size=63 is not a whole number of 64"),
            ({"size": 512.5}, r"size=512.5"),
            ({"feather": -1}, "feather=-1 is negative"),
            ({"feather": float("nan")}, "feather=nan"),
            ({"grow": None}, "grow=None is not a finite"),
            ({"join": "paste"}, "join='paste' is unknown. Accepted are plain, match, poisson"),
            ({"fill": "grey"}, "fill='grey' is unknown. Accepted are original"),
            ({"mask_mode": "red"}, "mask_mode='red' is unknown"),
            ({"speed": "turbo"}, r"speed='turbo' is unknown\. Accepted are exact, balanced, fast"),
            ({"context": "wide"}, "context='wide' is not understood"),
            ({"context": None}, "context=None is not understood"),
            ({"scheduler": "oiler"}, "scheduler='oiler' is unknown.*Did you mean euler"),
            ({"scheduler": 3}, "scheduler is a int; it takes one string"),
            ({"guidance_interval": (0.9, 0.1)}, "is not an interval of noise levels"),
            ({"prompt": None}, "prompt is a NoneType; it takes one string"),
            ({"prompt": ["a", "b"]}, "prompt is a list"),
            ({"negative_prompt": 3}, "negative_prompt is a int"),
            ({"progress": False}, r"progress is a bool.*retouch\.load\(\.\.\., progress=False\) shows none"),
        ],
    )
    def test_refusals(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            Options.of(**given)
        assert caught.value.parameter in (*given, None)

    def test_numbers_of_numpy_are_json(self) -> None:
        import json

        import numpy as np

        options = Options.of(steps=np.int64(3), grow=np.float32(2.5), seed=np.uint32(7), progress=print)
        values = json.loads(json.dumps(options.to_dict()))
        assert (values["steps"], values["grow"], values["seed"]) == (3, 2.5, 7)
        assert "progress" not in values and "record" not in values
        assert Options.of(**values).to_dict() == values
