"""Fields continued into a hole: the weighted average and Laplace's equation."""

from __future__ import annotations

import numpy as np
import pytest

from retouch.images.interpolate import harmonic, pull_push


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (x - width / 2) / width, (y - height / 2) / width


@pytest.mark.parametrize("size", [(64, 64), (130, 201), (300, 90)])
def test_harmonic_finds_known_solutions(size: tuple[int, int]) -> None:
    """Functions whose Laplacian is zero are their own continuation, linear ones too."""
    x, y = grid(*size)
    fields = [x, x * x - y * y, x * y, np.exp(3 * x) * np.cos(3 * y)]
    true = np.stack([field / np.ptp(field) for field in fields], axis=-1)
    known = np.hypot(x, y) > 0.12
    given = np.where(known[..., None], true, 9.0)
    found = harmonic(given, known)
    np.testing.assert_array_equal(found[known], true[known])
    assert np.abs(found - true).max() < 0.015, "of a range of 1"


def test_harmonic_keeps_to_the_boundarys_values() -> None:
    draw = np.random.default_rng(0).normal(0, 1, (90, 70, 2))
    known = np.ones((90, 70), bool)
    known[20:60, 15:50] = False
    found = harmonic(draw, known)
    edge = draw[np.array(known & (np.pad(~known, 1)[2:, 1:-1] | np.pad(~known, 1)[:-2, 1:-1]
                 | np.pad(~known, 1)[1:-1, 2:] | np.pad(~known, 1)[1:-1, :-2]))]  # fmt: skip
    assert found[~known].max() <= edge.max() + 1e-5 and found[~known].min() >= edge.min() - 1e-5


@pytest.mark.parametrize("fill", [harmonic, pull_push])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (3, 2), (5, 64), (33, 47)])
def test_what_is_constant_stays(fill: object, size: tuple[int, int]) -> None:
    known = np.zeros(size, bool)
    known[0, 0] = True
    given = np.where(known[..., None], np.float32(7), np.float32(-100)) * np.ones(3, np.float32)
    np.testing.assert_allclose(fill(given, known), 7, rtol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("fill", [harmonic, pull_push])
def test_all_known_stays_and_nothing_known_is_no_error(fill: object) -> None:
    values = np.random.default_rng(0).normal(0, 1, (11, 13, 3)).astype(np.float32)
    np.testing.assert_allclose(fill(values, np.ones((11, 13))), values, atol=1e-6)  # type: ignore[operator]
    assert np.isfinite(fill(values, np.zeros((11, 13)))).all()  # type: ignore[operator]


def test_pull_push_shifts_nothing() -> None:
    """A slope is continued where it is: the pyramid's cells lie over their pixels."""
    x, _ = grid(128, 128)
    known = np.abs(x) > 0.1
    found = pull_push(x[..., None], known)[..., 0]
    assert np.abs(found - x).max() < 0.06
    assert np.abs((found + found[:, ::-1])[:, 1:]).max() < 0.03, "the same from left and right"


def test_pull_push_blends_where_it_is_half_known() -> None:
    values = np.zeros((16, 16, 1), np.float32)
    values[8, 8] = 1
    weight = np.ones((16, 16))
    weight[8, 8] = 0.5
    assert 0.5 <= pull_push(values, weight)[8, 8, 0] < 0.75
