"""The sigma schedulers on a problem with a known solution, and the requests that they refuse.

All pictures of the problem are Gaussian noise of one deviation. Formulas give the best prediction and the
solution of the probability-flow equation.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from scheduler_grid import assert_same, drain, drive_plan, generators, noise_for
from torch import Tensor

from retouch.errors import ConfigError, InputError
from retouch.schedulers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from retouch.schedulers.lms import LMSPlan

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS = {**STABLE_DIFFUSION, "use_karras_sigmas": True}
DEVIATION = 0.4
STEPWISE = [
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LMSDiscreteScheduler,
]
SOLVERS = [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler]
ALL = [*STEPWISE, *SOLVERS]


def predict(plan: Any, step: Any, scaled: Tensor, kind: str) -> Tensor:
    """Return the prediction of a perfect model for latents that were scaled to variance 1."""
    sigma = getattr(plan, "input_sigmas", plan.sigmas)[step.index]
    signal = 1 / (1 + sigma**2) ** 0.5
    original = scaled / signal * DEVIATION**2 / (DEVIATION**2 + sigma**2)
    epsilon = (scaled - signal * original) / (sigma * signal)
    return {
        "sample": original,
        "epsilon": epsilon,
        "v_prediction": signal * epsilon - sigma * signal * original,
    }[kind]


def solve(scheduler: Any, steps: int, shape: tuple[int, ...] = (1, 1, 8, 8)) -> list[Tensor]:
    plan = scheduler.plan(steps, generator=generators(None))
    latents = [noise_for(shape, 1) * plan.initial_sigma]
    for step in plan:
        scaled = plan.scale_input(latents[-1], step)
        prediction = predict(plan, step, scaled, scheduler.settings["prediction_type"])
        latents.append(plan.advance(prediction, step, latents[-1]))
    return latents


def error(scheduler: Any, steps: int) -> float:
    """Return the largest difference from the exact solution, relative to its largest value."""
    latents, sigmas = solve(scheduler, steps), scheduler.plan(steps).sigmas
    variance_scaled = scheduler.plan(steps).initial_sigma == 1.0

    def deviation(sigma: Tensor) -> Tensor:
        return ((DEVIATION**2 + sigma**2) / (1 + sigma**2 if variance_scaled else 1)) ** 0.5

    exact = latents[0] * deviation(sigmas[-1]) / deviation(sigmas[0])
    return float((latents[-1] - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("make", STEPWISE[:2] + STEPWISE[3:])
def test_higher_order_is_closer_to_the_exact_solution(make: Any) -> None:
    better, plain = make(**KARRAS), EulerDiscreteScheduler(**KARRAS)
    assert error(better, 20) < 0.5 * error(plain, 20 * better.order)
    assert error(better, 40) < 0.6 * error(better, 20)


@pytest.mark.parametrize("make", SOLVERS)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_each_order_is_closer_to_the_exact_solution(make: Any, solver_type: str) -> None:
    settings = {**KARRAS, "final_sigmas_type": "sigma_min", "solver_type": solver_type}
    first, second, third = (make(**settings, solver_order=order) for order in (1, 2, 3))
    assert error(second, 36) < error(first, 36) / 3
    assert error(third, 36) < error(second, 36) / 2
    assert error(first, 72) < error(first, 36) / 1.9
    assert error(second, 72) < error(second, 36) / 3


@pytest.mark.parametrize("make", [*ALL, EulerAncestralDiscreteScheduler])
def test_all_prediction_types_describe_the_same_run(make: Any) -> None:
    """This holds also for schedulers whose counterpart in the reference takes no sample prediction."""
    runs = [
        solve(make(**STABLE_DIFFUSION, prediction_type=kind), 6)
        for kind in ("epsilon", "v_prediction", "sample")
    ]
    for latents in zip(*runs, strict=True):
        for other in latents[1:]:
            torch.testing.assert_close(other, latents[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (EulerAncestralDiscreteScheduler, STABLE_DIFFUSION),
        (KDPM2AncestralDiscreteScheduler, KARRAS),
        (DPMSolverMultistepScheduler, KARRAS | {"algorithm_type": "sde-dpmsolver++"}),
        (DPMSolverSinglestepScheduler, KARRAS | {"algorithm_type": "sde-dpmsolver++"}),
        (
            DPMSolverMultistepScheduler,
            KARRAS | {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
    ],
)
def test_fresh_noise_keeps_the_distribution(make: Any, settings: Any) -> None:
    end = solve(make(**settings), 80, (1, 1, 96, 96))[-1]
    assert float(end.std()) == pytest.approx(DEVIATION, rel=0.1)
    assert abs(float(end.mean())) < 0.02


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_lms_weights_integrate_polynomials_exactly(degree: int) -> None:
    plan = LMSDiscreteScheduler(**STABLE_DIFFUSION).plan(9)
    assert isinstance(plan, LMSPlan)
    sigmas = plan.sigmas.double()
    weights = plan.weights(5, degree)
    assert len(weights) == degree
    for power in range(degree):
        total = sum(weight * sigmas[5 - back] ** power for back, weight in enumerate(weights))
        exact = (sigmas[6] ** (power + 1) - sigmas[5] ** (power + 1)) / (power + 1)
        assert float(total) == pytest.approx(float(exact), rel=1e-9)


def test_lms_needs_no_scipy() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "import torch\n"
        "from retouch.schedulers import LMSDiscreteScheduler\n"
        "plan = LMSDiscreteScheduler().plan(6)\n"
        "x = torch.ones(1, 4, 2, 2)\n"
        "for step in plan: x = plan.advance(x, step, x)\n"
        "assert x.isfinite().all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("make", ALL)
def test_two_plans_of_one_scheduler_do_not_disturb_each_other(make: Any) -> None:
    scheduler = make()
    options = [{"steps": 6, "start": 0}, {"steps": 8, "start": 4}]

    def run(steps: int, start: int) -> Any:
        plan = scheduler.plan(steps, generator=generators(None)).after(start)
        return drive_plan(plan, shape=(1, 4, 4, steps), noised_first=start > 0)

    alone = [drain(run(**each)) for each in options]
    one, other = (run(**each) for each in options)
    together: list[Any] = [None, None]
    for _ in range(20):
        together = [next(one, together[0]), next(other, together[1])]
    for trace, expected in zip(together, alone, strict=True):
        assert_same(trace, expected, tolerance=0)


@pytest.mark.parametrize("make", ALL)
def test_a_plan_forgets_when_it_starts_again(make: Any) -> None:
    plan = make().plan(6)
    results = []
    for _ in range(2):
        plan.generator = generators(None)
        results.append(drain(drive_plan(plan)))
    assert_same(*results, tolerance=0)


@pytest.mark.parametrize("make", STEPWISE[:3])
def test_two_evaluations_for_each_step_but_the_last(make: Any) -> None:
    plan = make().plan(7)
    steps = list(plan)
    assert plan.order == 2 and len(steps) == 2 * 7 - 1
    assert [step.index for step in steps] == list(range(13))
    levels = [plan.level(step) for step in steps]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver"}, 'final_sigmas_type="sigma_min"'),
        (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver"}, "'sde-dpmsolver\\+\\+'"),
        (
            DPMSolverMultistepScheduler,
            {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
            "solver_order to 1 or 2",
        ),
        (DPMSolverMultistepScheduler, {"solver_order": 4}, "1, 2, 3"),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "Choose False"),
        (DPMSolverMultistepScheduler, {"use_lu_lambdas": True, "use_karras_sigmas": True}, "both set"),
        (UniPCMultistepScheduler, {"predict_x0": False}, 'final_sigmas_type="sigma_min"'),
        (UniPCMultistepScheduler, {"solver_p": {"_class_name": "DDIMScheduler"}}, "Choose None"),
        (UniPCMultistepScheduler, {"shift_terminal": 0.1}, "Choose None"),
        (LMSDiscreteScheduler, {"rescale_betas_zero_snr": True}, "from_config"),
    ],
)
def test_settings_that_are_not_supported_are_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("make", "settings", "given", "message"),
    [
        (LMSDiscreteScheduler, {}, {"timesteps": [900, 100]}, "Heun.*DPMSolverMultistep.*Singlestep"),
        (UniPCMultistepScheduler, {}, {"sigmas": [9.0, 0.0]}, "does not take custom sigmas"),
        (
            DPMSolverMultistepScheduler,
            {"use_lu_lambdas": True},
            {"timesteps": [9, 1]},
            "use_lu_lambdas=False",
        ),
        (HeunDiscreteScheduler, {"use_beta_sigmas": True}, {"timesteps": [9, 1]}, "use_beta_sigmas=False"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(make: Any, settings: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(**settings).plan(**given)
    assert caught.value.parameter == list(given)[-1]
