"""Which latents are restored after a step, and to what."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from sampling_fakes import FakePlan
from torch import Tensor

from retouch.sampling.region import Region

SHAPE = (2, 4, 3, 3)
PAINTED = torch.full(SHAPE, 100.0)


def noise_and_original() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=source), torch.randn(SHAPE, generator=source)


def region_of(value: float | Tensor) -> Region:
    noise, original = noise_and_original()
    repaint = value if isinstance(value, Tensor) else torch.full((2, 1, 3, 3), value)
    return Region(original, repaint, noise)


def test_an_all_keep_mask_ends_with_the_original_exactly() -> None:
    plan, region = FakePlan(), region_of(0.0)
    for step in plan:
        restored = region.restore_outside(PAINTED, plan, step)
        wanted = region.original if step.is_last else plan.noised(region.original, region.noise, step.next)
        assert torch.equal(restored, wanted)


def test_an_all_repaint_mask_changes_nothing() -> None:
    plan, region = FakePlan(), region_of(1.0)
    for step in plan:
        assert torch.equal(region.restore_outside(PAINTED, plan, step), PAINTED)


@pytest.mark.parametrize(
    ("value", "released_from"), [(0.9, 0), (0.75, 1), (0.6, 1), (0.3, 2), (0.2, 3), (0.001, 3)]
)
def test_a_grey_value_is_released_when_the_noise_falls_below_it(value: float, released_from: int) -> None:
    """After step i the latents are at the level of step i + 1: 0.75, 0.5, 0.25, 0."""
    plan, region = FakePlan(), region_of(value)
    released = [torch.equal(region.restore_outside(PAINTED, plan, step), PAINTED) for step in plan]
    assert released == [index >= released_from for index in range(4)]


def test_every_latent_goes_by_its_own_value() -> None:
    repaint = torch.tensor([[0.0, 0.3, 1.0]]).expand(2, 1, 3, 3).contiguous()
    plan, region = FakePlan(), region_of(repaint)
    restored = region.restore_outside(PAINTED, plan, plan.steps[1])
    painted = (restored == PAINTED).all(dim=1)
    assert painted[..., 2].all() and not painted[..., :2].any()
    restored = region.restore_outside(PAINTED, plan, plan.steps[3])
    painted = (restored == PAINTED).all(dim=1)
    assert painted[..., 1:].all() and not painted[..., 0].any()


def test_broken_latents_outside_of_the_hole_do_not_leak() -> None:
    """Weighing by zero would: zero times infinity is not a number."""
    plan, region = FakePlan(), region_of(0.0)
    restored = region.restore_outside(PAINTED / 0, plan, plan.steps[3])
    assert torch.equal(restored, region.original)


def test_the_noise_is_that_of_the_next_step() -> None:
    plan, region = FakePlan((0.8, 0.1)), region_of(0.0)
    restored = region.restore_outside(PAINTED, plan, plan.steps[0])
    assert_close(restored, 0.9 * region.original + 0.1 * region.noise)
