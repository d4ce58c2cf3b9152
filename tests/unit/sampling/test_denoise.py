"""The loop: every step once and in order, latents replaced on the way, stopping by breaking off."""

from __future__ import annotations

import torch
from sampling_fakes import FakePlan
from torch import Tensor

from retouch.sampling.denoise import denoise
from retouch.sampling.region import Region
from retouch.schedulers.plan import Step

START = torch.zeros(1, 4, 2, 2)


def one(latents: Tensor, step: Step) -> Tensor:
    return torch.ones_like(latents)


def test_every_step_once_and_in_order() -> None:
    plan = FakePlan()
    seen = [(progress.step.index, float(progress.latents.mean())) for progress in denoise(one, plan, START)]
    assert seen == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]


def test_the_prediction_is_of_the_latents_of_its_step() -> None:
    def double(latents: Tensor, step: Step) -> Tensor:
        return latents + step.index

    *_, last = denoise(double, FakePlan(), START + 1)
    assert float(last.latents.mean()) == ((((1 * 2 + 0) * 2 + 1) * 2 + 2) * 2 + 3)


def test_whoever_listens_may_replace_the_latents() -> None:
    for progress in denoise(one, FakePlan(), START):
        if progress.step.index == 1:
            progress.latents = torch.full_like(START, 100.0)
    assert float(progress.latents.mean()) == 102.0


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    plan = FakePlan()
    steps = denoise(one, plan, START)
    assert plan.advanced == []
    next(steps)
    assert plan.advanced == [0]
    steps.close()
    assert plan.advanced == [0]


def test_the_region_is_restored_after_every_step() -> None:
    plan = FakePlan()
    keep_left = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    region = Region(original=START + 8, repaint=keep_left, noise=START - 4)
    for progress in denoise(one, plan, START, region):
        following = progress.step.next
        level = 0.0 if following is None else plan.level(following)
        left, right = progress.latents[..., 0], progress.latents[..., 1]
        assert torch.equal(left, torch.full_like(left, (1 - level) * 8 - level * 4))
        assert torch.equal(right, torch.full_like(right, progress.step.index + 1.0))
    assert torch.equal(progress.latents[..., 0], region.original[..., 0])
