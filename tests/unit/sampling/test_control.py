"""What a control shows its nets, when, and what it hands to the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling_fakes import FakePlan
from torch import Tensor

from retouch.sampling.conditioning import Conditioning
from retouch.sampling.control import Control
from retouch.sampling.guidance import Guidance
from retouch.sampling.predict import Predictor

LATENTS = torch.arange(32.0).reshape(2, 4, 2, 2)
POSITIVE = {"text": torch.full((2, 3), 5.0), "added": {"sizes": torch.full((2, 1), 50.0)}}
NEGATIVE = {"text": torch.full((2, 3), 2.0), "added": {"sizes": torch.full((2, 1), 20.0)}}
DISTILLED = {"timestep_cond": torch.ones(2, 7)}
PICTURES = [torch.full((2, 3, 16, 16), value) for value in (0.25, 0.5)]
DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"


class FakeNets:
    """Remembers its calls; each net's residuals are its picture's value times its scale."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, x: Tensor, timestep: Tensor, **given: Any) -> tuple[list[Tensor], Tensor]:
        self.calls.append({"x": x, "timestep": timestep, **given})
        parts = zip(given["controlnet_cond"], given["conditioning_scale"], strict=True)
        found = sum(picture.mean() * scale for picture, scale in parts)
        mid = torch.full_like(x[:, :1], float(found))
        return [mid, 2 * mid], mid


class FakeUNet:
    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, x: Tensor, timestep: Tensor, **given: Any) -> tuple[Tensor]:
        self.calls.append({"x": x, **given})
        return (x[:, :4],)


class Schedule(FakePlan):
    """Four steps, of which strength may have left out the first."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start


def predictor(
    *, active: bool = True, start: int = 0, channels: Tensor | None = None, **settings: Any
) -> tuple[Predictor, FakeNets, FakeUNet]:
    nets, unet, plan = FakeNets(), FakeUNet(), Schedule(start)
    guidance = Guidance(3.0, active=active)
    inputs = guidance.pair(Conditioning(POSITIVE | DISTILLED, NEGATIVE | DISTILLED if active else None))
    given = {"pictures": PICTURES, "scales": [1.0, 1.0], "windows": [(0.0, 1.0)] * 2, **settings}
    control = Control(nets, plan, **given)  # type: ignore[arg-type]
    return Predictor(unet, plan, guidance, inputs, channels, control), nets, unet  # type: ignore[arg-type]


@pytest.mark.parametrize("active", [True, False])
def test_the_nets_see_what_the_model_sees(active: bool) -> None:
    predict, nets, unet = predictor(active=active)
    step = predict.plan.steps[1]
    predict(LATENTS, step)
    (call,), (seen,) = nets.calls, unet.calls
    assert torch.equal(call["x"], seen["x"]) and call["timestep"] is step.timestep
    assert torch.equal(call["text"], seen["text"]) and torch.equal(
        call["added"]["sizes"], seen["added"]["sizes"]
    )
    assert "timestep_cond" in seen and "timestep_cond" not in call
    for shown, picture in zip(call["controlnet_cond"], PICTURES, strict=True):
        assert torch.equal(shown, torch.cat([picture, picture]) if active else picture)
    assert call["guess_mode"] is False
    assert torch.equal(seen[MID], torch.full((4 if active else 2, 1, 2, 2), 0.75))
    assert torch.equal(seen[DOWN][1], 2 * seen[MID])


def test_the_nets_see_latents_alone_where_the_model_sees_a_mask_too() -> None:
    predict, nets, unet = predictor(channels=torch.full((2, 5, 2, 2), 7.0))
    predict(LATENTS, predict.plan.steps[0])
    assert nets.calls[0]["x"].shape == (4, 4, 2, 2) and unet.calls[0]["x"].shape == (4, 9, 2, 2)
    assert torch.equal(nets.calls[0]["x"], torch.cat([LATENTS, LATENTS]) / 2)


def test_guessing_leaves_the_negative_side_alone() -> None:
    predict, nets, unet = predictor(guess_mode=True)
    predict(LATENTS, predict.plan.steps[0])
    (call,), (seen,) = nets.calls, unet.calls
    assert torch.equal(call["x"], LATENTS / 2) and call["guess_mode"] is True
    assert torch.equal(call["text"], POSITIVE["text"])  # type: ignore[arg-type]
    assert call["added"]["sizes"].tolist() == [[50.0], [50.0]]
    assert all(torch.equal(*pair) for pair in zip(call["controlnet_cond"], PICTURES, strict=True))
    for part in [*seen[DOWN], seen[MID]]:
        assert len(part) == 4 and not part[:2].any() and part[2:].all()


def test_guessing_without_guidance_has_one_side() -> None:
    predict, nets, unet = predictor(guess_mode=True, active=False)
    predict(LATENTS, predict.plan.steps[0])
    assert nets.calls[0]["guess_mode"] is True and len(nets.calls[0]["x"]) == 2
    assert unet.calls[0][MID].all()


@pytest.mark.parametrize(
    ("windows", "start", "expected"),
    [
        ([(0.0, 1.0), (0.0, 1.0)], 0, [(1, 1)] * 4),
        ([(0.0, 0.5), (0.5, 1.0)], 0, [(1, 0), (1, 0), (0, 1), (0, 1)]),
        ([(0.25, 0.5), (0.3, 1.0)], 0, [None, (1, 0), (0, 1), (0, 1)]),
        ([(0.0, 0.74), (0.0, 0.1)], 0, [(1, 0), (1, 0), None, None]),
        # Fractions of the three steps that strength has left.
        ([(0.0, 0.34), (0.33, 0.67)], 1, [(1, 0), (0, 1), None]),
    ],
)
def test_windows(windows: Any, start: int, expected: list[tuple[int, int] | None]) -> None:
    predict, nets, unet = predictor(windows=windows, start=start, scales=[0.5, 2.0])
    for step in predict.plan.steps[start:]:
        predict(LATENTS, step)
    shown = iter(nets.calls)
    for wanted, seen in zip(expected, unet.calls, strict=True):
        if wanted is None:
            assert DOWN not in seen and MID not in seen
        else:
            assert next(shown)["conditioning_scale"] == [0.5 * wanted[0], 2.0 * wanted[1]]
    assert not list(shown), "a net was run where all are off"


def test_nets_of_another_precision() -> None:
    predict, nets, unet = predictor(pictures=[picture.half() for picture in PICTURES])
    predict(LATENTS, predict.plan.steps[0])
    (call,) = nets.calls
    assert call["x"].dtype == call["text"].dtype == call["added"]["sizes"].dtype == torch.float16
    assert unet.calls[0][MID].dtype == torch.float32


def test_others_can_be_shown_between_two_steps() -> None:
    """A listener gives them with both sides or with one, as it got them."""
    predict, nets, _ = predictor()
    assert predict.control is not None
    shown = predict.control.shown(predict.guidance)
    predict.control.show([part * 2 for part in shown])
    predict.guidance.active = False
    predict.inputs = dict(POSITIVE)
    predict(LATENTS, predict.plan.steps[1])
    assert [float(part.mean()) for part in nets.calls[0]["controlnet_cond"]] == [0.5, 1.0]
    assert len(nets.calls[0]["controlnet_cond"][0]) == 2
