from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from retouch.devices import randn


@pytest.mark.parametrize(
    ("shape", "seeds"),
    [
        ((1, 4, 8, 8), 0),
        ((1, 4, 8, 8), [1]),
        ((3, 4, 5, 7), 0),
        ((3, 4, 5, 7), [1]),
        ((3, 4, 5, 7), [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_same_numbers_as_the_reference(shape: tuple[int, ...], dtype: Any, seeds: Any) -> None:
    def generators() -> Any:
        if isinstance(seeds, int):
            return torch.Generator().manual_seed(seeds)
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    ours, theirs = generators(), generators()
    for _ in range(2):  # the second draw continues after the first
        expected = randn_tensor(shape, generator=theirs, device=torch.device("cpu"), dtype=dtype)
        assert torch.equal(randn(shape, ours, "cpu", dtype), expected)


def test_without_a_generator_torch_s_own_seed_counts() -> None:
    torch.manual_seed(3)
    ours = randn((2, 3))
    torch.manual_seed(3)
    assert torch.equal(ours, randn_tensor((2, 3)))
