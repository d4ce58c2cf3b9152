"""How close two computations of the same thing must be: the one place that says so, and how it is derived.

A network in float32 has no single right result. Every machine's kernels add up in their own order, and a
pipeline's steps let roundings grow by a factor that depends on the scheduler, the guidance and the weights.
So a test of networks or pipelines names no tolerance. It passes the second computation as a function, and
`assert_close` derives the tolerance from what rounding does to that very computation on this machine:

1. A difference of `FEW` roundings of a typical value passes at once, because it needs no explanation.
2. Otherwise the function runs again with random rounding (Monte Carlo arithmetic, as in Parker's and in the
   CESTAC method): each operation is computed in float64 and then rounded up or down by chance. The plain
   result has the errors of this machine's kernels, and the second result has none, so their distance shows
   how much the kernels' order of summation and all later roundings change the result. Ours may be
   `MULTIPLE` times that distance away from theirs, and no more.

The other limits here are those of pictures with 256 levels and of the arithmetic in schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# The wrong layers of tests/parity/test_closeness.py are off by more. Of our pipelines on tiny
# models, one in twenty is off by more than this, and gets measured.
FEW = 64

# A difference of that many has another cause than rounding.
CAUSED = 1000

# Two right results are up to twice as far apart as each is from the exact one. The rest is for kernels that
# add up in longer chains than the reference's do. On three kinds of machines no ratio above 2.5 was seen.
MULTIPLE = 8

# A value at the border of two of a picture's 256 levels may be rounded to either.
ONE_LEVEL = 1.001 / 255

# Layers in 8 bits that get the same bytes; what comes after them rounds as usual.
EIGHT_BITS = 1e-4

# Relative to the largest value of a scheduler's run: some dozen steps of some dozen operations each.
SCHEDULER = 1e-5

# A scheduler's tables, such as its sigmas and its betas: a few operations on each value.
TABLE = 1e-6


def one_rounding(dtype: torch.dtype) -> float:
    """Return how far a value may move, relative to itself, when it is stored in a dtype."""
    return torch.finfo(dtype).eps / 2


def assert_close(ours: Any, theirs: Any, limit: float | None = None) -> None:
    """Fail unless both have the same shape and dtype, and values that only rounding sets apart.

    Each is a tensor, an array, PIL pictures, or a list of these. `theirs` may be a function without arguments
    that returns it, and has to be one for networks: a value may be off by `FEW` roundings only.
    `limit` is for what rounds more coarsely than its dtype, and is one of the limits above.
    """
    compute = theirs if callable(theirs) else None
    expected = tensors(compute() if compute else theirs)
    found = tensors(ours)
    assert len(found) == len(expected)
    allowed = [_few_roundings(reference) for reference in expected]
    for mine, reference in zip(found, expected, strict=True):
        _check_kind(mine, reference)
    if _are_pictures(ours):
        limit = ONE_LEVEL
    if limit is not None:
        allowed = [limit] * len(found)
    elif compute and any(
        _distance(*pair) > most for *pair, most in zip(found, expected, allowed, strict=True)
    ):
        again = tensors(with_random_rounding(compute))
        measured = [_distance(reference, other) for reference, other in zip(expected, again, strict=True)]
        allowed = [max(few, MULTIPLE * moved) for few, moved in zip(allowed, measured, strict=True)]
    for mine, reference, most in zip(found, expected, allowed, strict=True):
        assert _distance(mine, reference) <= most, f"{describe(mine, reference)}, allowed are {most:.2e}"


def assert_equal(ours: Any, theirs: Any) -> None:
    """Fail unless both have the same shape, dtype and values, and values that are worth comparing."""
    for mine, reference in zip(tensors(ours), tensors(theirs), strict=True):
        _check_kind(mine, reference)
        assert torch.equal(mine, reference), describe(mine, reference)


def assert_differ(one: Any, other: Any) -> None:
    """Fail unless something other than rounding sets two results apart."""
    pairs = zip(tensors(one), tensors(other), strict=True)
    most = max(_distance(*pair) / _few_roundings(pair[1]) for pair in pairs)
    assert most > CAUSED / FEW, f"the largest difference is {most * FEW:.1f} roundings"


def describe(ours: Tensor, theirs: Tensor) -> str:
    peak = theirs.double().abs().max().item()
    noise = (ours.double() - theirs.double()).square().mean().item()
    psnr = 10 * math.log10(peak**2 / max(noise, 1e-30))
    return f"max difference {_distance(ours, theirs):.2e} of {peak:.2f}, PSNR {psnr:.1f} dB"


def tensors(values: Any) -> list[Tensor]:
    """Return a result of any kind as a list of tensors, PIL pictures with values from 0 to 1."""
    if isinstance(values, Tensor):
        return [values.detach().as_subclass(Tensor)]
    if isinstance(values, np.ndarray):
        return [torch.from_numpy(values)]
    if _are_pictures(values):
        return [torch.from_numpy(np.asarray(picture, np.float32) / 255) for picture in values]
    return [tensor for value in values for tensor in tensors(value)]


def _are_pictures(values: Any) -> bool:
    return isinstance(values, Sequence) and len(values) > 0 and isinstance(values[0], Image.Image)


def _check_kind(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert theirs.isfinite().all()
    values = theirs.double()
    assert values.std() > 0.01 * values.square().mean().sqrt(), "almost constant values show nothing"


def _few_roundings(values: Tensor) -> float:
    """Return the size of `FEW` roundings of a typical value, 0 in half precision, where few are many."""
    precision = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return FEW * precision * values.double().square().mean().sqrt().item() if precision < 1e-6 else 0.0


def _distance(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).abs().max().item()


class RandomRounding(TorchDispatchMode):
    """Computes every operation in float64 and rounds its result, unless it is exact, up or down by chance."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = func(*args, **kwargs)
        if not self.rounds(func, (args, kwargs), plain):
            return plain
        if func.namespace != "aten":  # kernels that know one dtype: oneDNN's and our own
            return tree_map(self.shaken, plain)
        return tree_map(self.rounded, plain, func(*tree_map(widened, args), **tree_map(widened, kwargs)))

    @staticmethod
    def rounds(func: Any, given: Any, result: Any) -> bool:
        """Tell whether an operation computes floats from floats, as views, draws and casts do not."""
        if func.is_view or func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if func._schema.name in ("aten::_to_copy", "aten::clone", "aten::detach"):
            return False
        return all(any(is_rounded(leaf) for leaf in tree_leaves(side)) for side in (given, result))

    def rounded(self, plain: Any, exact: Any) -> Any:
        if not is_rounded(plain):
            return plain
        nearest = exact.to(plain.dtype)
        if torch.equal(nearest.double(), exact):
            return nearest
        moved = (exact * (1 + torch.finfo(plain.dtype).eps * self.chance(exact))).to(plain.dtype)
        return torch.where(nearest.double() == exact, nearest, moved)

    def shaken(self, plain: Any) -> Any:
        """Move each value by one rounding of a typical one, for want of the exact values."""
        if not is_rounded(plain):
            return plain
        typical = plain.double().square().mean().sqrt()
        return plain + (2 * torch.finfo(plain.dtype).eps * typical * self.chance(plain)).to(plain.dtype)

    def chance(self, like: Tensor) -> Tensor:
        """Return numbers from -0.5 to 0.5 that take nothing from the test's own generators."""
        return torch.rand(like.shape, generator=self.source, dtype=torch.float64).to(like.device) - 0.5


def is_rounded(value: Any) -> bool:
    """Tell floats from integers, from float64, and from the weights that oneDNN keeps in its own layout."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.layout == torch.strided
    )


def widened(value: Any) -> Any:
    return value.double() if is_rounded(value) else value


def with_random_rounding(compute: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]), RandomRounding(seed):
        return compute()


def share_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give the reference's weights to ours, having seen that ours fit the reference too. Both strictly."""
    weights = {key: value.clone() for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
