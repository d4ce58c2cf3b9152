"""One evaluation: scaling, joined channels, both sides of the guidance, and how they are combined."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from sampling_fakes import FakeModel, FakePlan

from retouch.sampling.conditioning import Conditioning, stack
from retouch.sampling.guidance import Guidance
from retouch.sampling.predict import Predictor

LATENTS = torch.arange(32.0).reshape(2, 4, 2, 2)
POSITIVE, NEGATIVE = torch.full((2, 3), 5.0), torch.full((2, 3), 2.0)
CHANNELS = torch.full((2, 5, 2, 2), 7.0)


def predictor(model: FakeModel, guidance: Guidance, channels: torch.Tensor | None = None) -> Predictor:
    negative = {"text": NEGATIVE} if guidance.active else None
    inputs = guidance.pair(Conditioning({"text": POSITIVE}, negative))
    return Predictor(model, FakePlan(), guidance, inputs, channels)


def test_without_guidance_the_model_sees_one_side() -> None:
    model = FakeModel()
    step = FakePlan().steps[1]
    found = predictor(model, Guidance(1.0, active=False))(LATENTS, step)
    (call,) = model.calls
    assert torch.equal(call["x"], LATENTS / 2) and torch.equal(call["text"], POSITIVE)
    assert call["timestep"] is step.timestep
    assert torch.equal(found, LATENTS / 2 + 5)


def test_with_guidance_negative_rows_come_first() -> None:
    model = FakeModel()
    found = predictor(model, Guidance(3.0))(LATENTS, FakePlan().steps[0])
    (call,) = model.calls
    assert torch.equal(call["x"], torch.cat([LATENTS, LATENTS]) / 2)
    assert torch.equal(call["text"], torch.cat([NEGATIVE, POSITIVE]))
    assert torch.equal(found, LATENTS / 2 + 2 + 3 * (5 - 2))


@pytest.mark.parametrize("active", [True, False])
def test_channels_are_joined_after_scaling_and_are_not_scaled(active: bool) -> None:
    model = FakeModel()
    predictor(model, Guidance(3.0, active=active), CHANNELS)(LATENTS, FakePlan().steps[0])
    x = model.calls[0]["x"]
    assert x.shape == (4 if active else 2, 9, 2, 2)
    for rows in x.split(2):
        assert torch.equal(rows[:, :4], LATENTS / 2) and torch.equal(rows[:, 4:], CHANNELS)


@pytest.mark.parametrize("cut", [True, False])
def test_guidance_can_be_switched_off_between_two_steps(cut: bool) -> None:
    """Whoever switches it off may leave both sides in the inputs: the positive one counts."""
    model = FakeModel()
    predict = predictor(model, Guidance(3.0), CHANNELS)
    predict(LATENTS, FakePlan().steps[0])
    predict.guidance.active = False
    if cut:
        predict.inputs = {"text": POSITIVE}
    assert torch.equal(predict(LATENTS, FakePlan().steps[1]), LATENTS / 2 + 5)
    assert [len(call["x"]) for call in model.calls] == [4, 2]


def test_scale_one_is_the_positive_side() -> None:
    prediction = torch.randn(4, 4, 2, 2)
    assert_close(Guidance(1.0).combine(prediction), prediction[2:])


def test_scale_zero_is_the_negative_side() -> None:
    prediction = torch.randn(4, 4, 2, 2)
    assert torch.equal(Guidance(0.0).combine(prediction), prediction[:2])


def test_full_rescale_gives_the_positive_sides_spread_to_each_row() -> None:
    prediction = torch.randn(4, 4, 6, 6) * torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)
    guided = Guidance(8.0, rescale=1.0).combine(prediction)
    assert_close(guided.std(dim=(1, 2, 3)), prediction[2:].std(dim=(1, 2, 3)))


def test_rescale_is_a_mixture() -> None:
    prediction = torch.randn(2, 4, 6, 6)
    plain, full, third = (Guidance(8.0, rescale=share).combine(prediction) for share in (0.0, 1.0, 1 / 3))
    assert_close(third, full / 3 + plain * 2 / 3)


def test_stacking_goes_into_mappings() -> None:
    first = {"text": torch.zeros(1, 2), "added": {"sizes": torch.zeros(1, 3)}}
    second = {"text": torch.ones(1, 2), "added": {"sizes": torch.ones(1, 3)}}
    both = stack(first, second)
    assert both["text"].tolist() == [[0, 0], [1, 1]]
    assert both["added"]["sizes"].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_the_dtype_is_that_of_the_inputs() -> None:
    assert Conditioning({"added": {}, "text": POSITIVE.half()}).dtype == torch.float16
