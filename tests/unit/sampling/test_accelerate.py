"""What is reused between evaluations, and when it is computed anew, with a model of a few lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close
from sampling_fakes import FakeModel, FakePlan
from torch import Tensor

from retouch.sampling.accelerate import DeepReuse
from retouch.sampling.conditioning import Conditioning
from retouch.sampling.guidance import Guidance
from retouch.sampling.predict import Predictor
from retouch.sampling.tiles import tiled


class FakeUNet:
    """Its deep features are the latents' mean; it notes of each call how many rows there were, and whether
    the deep features were given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(
        self, x: Tensor, timestep: Any, *, deep: Tensor | None, return_deep: bool, return_dict: bool, **_: Any
    ) -> tuple[Tensor, Tensor]:
        assert return_deep
        self.calls.append((len(x), deep is not None))
        deep = x.mean(dim=(1, 2, 3), keepdim=True) if deep is None else deep
        return x + deep, deep


@pytest.mark.parametrize("every", [2, 3])
def test_deep_features_are_computed_in_every_nth_evaluation(every: int) -> None:
    unet = FakeUNet()
    model = DeepReuse(unet, every)
    found = [model(torch.full((2, 1, 2, 2), float(value)), 0, return_dict=False)[0] for value in range(7)]
    assert unet.calls == [(2, bool(index % every)) for index in range(7)]
    for value, prediction in enumerate(found):
        assert prediction.unique().tolist() == [value + value - value % every]


def test_guidance_that_goes_leaves_the_positive_rows() -> None:
    unet = FakeUNet()
    model = DeepReuse(unet, 2)
    both = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)
    model(both, 0, return_dict=False)
    (alone,) = model(torch.zeros(2, 1, 1, 1), 0, return_dict=False)
    assert alone.flatten().tolist() == [3, 4]
    assert unet.calls == [(4, False), (2, True)]


def test_guidance_that_comes_back_has_its_rows_computed() -> None:
    unet = FakeUNet()
    model = DeepReuse(unet, 4)
    for rows in (2, 2, 4, 4, 4, 4, 4):
        model(torch.zeros(rows, 1, 1, 1), 0, return_dict=False)
    reused = [False, True, False, True, True, True, False]
    assert unet.calls == list(zip((2, 2, 4, 4, 4, 4, 4), reused, strict=True))


def test_two_runs_do_not_share_what_they_remember() -> None:
    unet = FakeUNet()
    first, second = DeepReuse(unet, 2), DeepReuse(unet, 2)
    for value, model in ((1.0, first), (5.0, second), (0.0, first), (0.0, second)):
        (last,) = model(torch.full((1, 1, 1, 1), value), 0, return_dict=False)
    assert last.item() == 5
    assert first.fresh()._deep is None


def test_each_window_remembers_its_own() -> None:
    """Windows of the same size over different latents, so that another one's features would be taken."""
    plan = FakePlan()
    latents = torch.arange(12.0).reshape(1, 1, 1, 12).expand(1, 1, 4, 12)

    def run(every: int) -> Tensor:
        model = DeepReuse(FakeUNet(), every)
        predict = tiled(Predictor(model, plan, Guidance(1.0, active=False), {}), 4, 1)
        return [predict(latents, step) for step in plan][-1]

    assert_close(run(1), run(4))  # the latents stay, so what is remembered is right


def test_guidance_in_an_interval_of_noise_levels() -> None:
    model, plan = FakeModel(), FakePlan((1.0, 0.75, 0.5, 0.25))
    guidance = Guidance(3.0, interval=(0.5, 0.75))
    inputs = guidance.pair(Conditioning({"text": torch.full((2, 3), 5.0)}, {"text": torch.full((2, 3), 2.0)}))
    predict = Predictor(model, plan, guidance, inputs, channels=torch.ones(2, 1, 2, 2))
    latents = torch.ones(2, 4, 2, 2)
    found = [predict(latents, step).unique().tolist() for step in plan]
    assert [len(call["x"]) for call in model.calls] == [2, 4, 4, 2]
    assert [call["text"].unique().tolist() for call in model.calls] == [[5], [2, 5], [2, 5], [5]]
    assert found == [[5.5], [0.5 + 2 + 3 * 3], [0.5 + 2 + 3 * 3], [5.5]]
    assert guidance.active, "it comes back"


def test_an_interval_does_not_switch_on_what_is_off() -> None:
    plan = FakePlan()
    off = Guidance(1.0, active=False, interval=(0.0, 1.0))
    assert not any(off.at(plan, step).active for step in plan)
    everywhere = Guidance(3.0, interval=(0.0, 1.0))
    assert all(everywhere.at(plan, step) is everywhere for step in plan)
