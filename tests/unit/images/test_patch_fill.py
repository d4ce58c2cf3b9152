"""Holes that are filled with patches of the same photo, in native code and without it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.images import patch_fill as module
from retouch.images.patch_fill import SIDE, Stopped, patch_fill

NATIVE = "retouch.images._patch_fill"
SIZE = 96, 120  # height, width
Y, X = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
SLOPE = np.stack([X + 60, 2 * Y + 40, 200 - X], axis=-1).astype(np.uint8)
HOLE = (np.abs(X - 60) < 15) & (np.abs(Y - 48) < 12)
SPOT = (np.abs(X - 60) < 4) & (np.abs(Y - 48) < 4)
pytestmark = pytest.mark.filterwarnings("ignore:retouch was installed without its native code")


@pytest.fixture(params=["native", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to fill that the tests hold for."""
    if request.param == "numpy":
        hide_native_code(monkeypatch)
    elif importlib.util.find_spec(NATIVE) is None:
        pytest.skip("the native code is not built")
    return request.param


def hide_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave only numpy."""
    monkeypatch.setitem(sys.modules, NATIVE, None)
    monkeypatch.setitem(sys.modules, "patchmatch", None)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def spoilt(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    return np.where(hole[..., None], np.uint8(255), photo)


def texture(name: str) -> np.ndarray:
    """A texture whose period is no power of two."""
    ones = {
        "stripes": X // 3 % 2,
        "diagonal stripes": (X + Y) % 10 // 5,
        "checks": (X // 5 + Y // 5) % 2,
        "bricks": ((X + Y // 6 % 2 * 7) % 14 < 2) | (Y % 6 < 1),
    }[name]
    return np.where(ones[..., None], (210, 60, 40), (30, 90, 160)).astype(np.uint8)


@pytest.mark.parametrize("name", ["stripes", "diagonal stripes", "checks", "bricks"])
def test_a_regular_texture_is_restored(way: str, name: str) -> None:
    photo = texture(name)
    filled = patch_fill(spoilt(photo, HOLE), HOLE)
    error = np.abs(filled.astype(int) - photo)[HOLE]
    assert (error.max(axis=-1) > 8).mean() < 0.02, "half the pixels are wrong by chance"


def test_a_smooth_photo_stays_smooth(way: str) -> None:
    filled = patch_fill(spoilt(SLOPE, HOLE), HOLE)
    error = np.abs(filled.astype(int) - SLOPE)
    assert error[HOLE].mean() < 6
    for axis in (0, 1):
        assert np.abs(np.diff(filled.astype(int), axis=axis)).max() < 16


def test_the_outside_and_the_input_stay(way: str) -> None:
    given, hole = noise(*SIZE, 3), HOLE.copy()
    before = given.copy()
    filled = patch_fill(given, hole)
    np.testing.assert_array_equal(filled[~HOLE], before[~HOLE])
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(hole, HOLE)
    assert (filled[HOLE] != before[HOLE]).any()


def test_what_is_in_the_hole_does_not_matter(way: str) -> None:
    photo = texture("bricks")
    first, second = (
        patch_fill(np.where(HOLE[..., None], noise(*SIZE, 3, seed=i), photo), HOLE) for i in (1, 2)
    )
    np.testing.assert_array_equal(first, second)


def test_nothing_to_fill(way: str) -> None:
    given = noise(*SIZE, 3)
    filled = patch_fill(given, np.zeros_like(HOLE))
    np.testing.assert_array_equal(filled, given)
    assert filled is not given


def test_equal_arguments_give_equal_pixels(way: str) -> None:
    given = noise(*SIZE, 3)
    first, again, other = (patch_fill(given, SPOT, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(patch_fill(given, SPOT, seed=-1), patch_fill(given, SPOT, seed=2**32 - 1))


def test_threads_do_not_change_the_pixels(way: str) -> None:
    photos = [noise(*SIZE, 3, seed=seed) for seed in range(4)]
    alone = [patch_fill(photo, SPOT) for photo in photos]
    together: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: patch_fill(photos[i], SPOT)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(together[i], expected)


def test_a_far_hole_does_not_change_the_pixels(way: str) -> None:
    given = noise(60, 900, 3)
    holes = np.zeros((2, 60, 900), bool)
    holes[0, 20:30, 20:30] = True
    holes[1, 20:32, 700:712] = True
    both = patch_fill(given, holes.any(axis=0))
    for hole in holes:
        np.testing.assert_array_equal(both[hole], patch_fill(given, hole)[hole])


@pytest.mark.parametrize("left_may_be_copied", [True, False])
def test_only_the_source_is_copied(way: str, left_may_be_copied: bool) -> None:
    """Two halves, each with texture in a channel that the other lacks, and a hole across their border."""
    photo = np.zeros((*SIZE, 3), np.uint8)
    left = X < 60
    photo[left, 0], photo[~left, 2] = 200 * (X // 3 % 2)[left], 200 * (X // 3 % 2)[~left]
    source = left == left_may_be_copied
    used: list[np.ndarray] = []

    def keep(photo: np.ndarray, painted: np.ndarray, inside: np.ndarray) -> np.ndarray:
        used.append(painted[inside])
        return painted

    # Without the correction of colours, which fits the patches to the photo around the hole.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_joined", keep)
        result = patch_fill(spoilt(photo, HOLE), HOLE, source=source)
    copied = used[0] if used else result[HOLE]  # the native code has no such correction
    mine, other = (0, 2) if left_may_be_copied else (2, 0)
    assert (copied[:, other] == 0).all() and copied[:, mine].max() > 100
    filled = patch_fill(spoilt(photo, HOLE), HOLE, source=source)
    np.testing.assert_array_equal(filled[~HOLE], photo[~HOLE])


def test_a_far_source_is_reached(way: str) -> None:
    given = np.zeros((40, 900, 3), np.uint8)
    given[:, 800:] = 90
    hole = np.zeros((40, 900), bool)
    hole[10:20, 10:20] = True
    seen: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            module, "_joined", lambda photo, painted, inside: seen.append(painted[inside]) or painted
        )
        result = patch_fill(given, hole, source=np.broadcast_to(np.arange(900) >= 800, (40, 900)))
    assert ((seen[0] if seen else result[hole]) == 90).all()


class Package(types.ModuleType):
    """A stand-in for PyPatchMatch, which is not among the packages that tests install."""

    def __init__(self, available: bool = True) -> None:
        super().__init__("patchmatch")
        self.patchmatch_available = available
        self.seeds: list[int] = []
        self.calls: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def inpaint(
        self, image: np.ndarray, mask: np.ndarray, *, global_mask: np.ndarray, patch_size: int
    ) -> np.ndarray:
        self.calls.append((image.copy(), mask, global_mask, patch_size))
        return np.where(mask[..., None], np.uint8(7), image)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    hide_native_code(monkeypatch)
    package = Package()
    monkeypatch.setitem(sys.modules, "patchmatch", package)
    return package


def test_the_package_is_used_where_it_is_installed(package: Package) -> None:
    given, seen = noise(*SIZE, 3), []
    source = X < 90
    with pytest.warns(UserWarning, match="PyPatchMatch fills holes.*install retouch again") as warned:
        filled = patch_fill(
            given, HOLE, source=source, seed=-1, progress=lambda *numbers: seen.append(numbers)
        )
    assert warned[0].filename == __file__
    assert (filled[HOLE] == 7).all()
    np.testing.assert_array_equal(filled[~HOLE], given[~HOLE])
    assert package.seeds == [2**32 - 1] and seen == [(0, 100), (100, 100)]
    [(image, mask, barred, _)] = package.calls
    np.testing.assert_array_equal(image, given)
    np.testing.assert_array_equal(mask, HOLE)
    np.testing.assert_array_equal(barred, ~source & ~HOLE)


def test_the_package_stops_between_windows(package: Package) -> None:
    holes = np.zeros((60, 900), bool)
    holes[20:30, 20:30] = holes[20:30, 700:710] = True
    for limit, calls in ((0, 0), (50, 1), (100, 1)):
        package.calls.clear()
        with pytest.raises(Stopped):
            patch_fill(noise(60, 900, 3), holes, progress=lambda done, of, limit=limit: done < limit)
        assert len(package.calls) == calls


def test_a_package_that_does_not_work_is_left_alone(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in (Package(available=False), types.ModuleType("patchmatch")):
        monkeypatch.setitem(sys.modules, "patchmatch", broken)
        with pytest.warns(UserWarning, match="numpy fills holes"):
            filled = patch_fill(spoilt(SLOPE, SPOT), SPOT)
        assert np.abs(filled.astype(int) - SLOPE).max() < 10


def test_the_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_native_code(monkeypatch)
    monkeypatch.delitem(sys.modules, "patchmatch")
    pytest.importorskip("patchmatch")
    photo = texture("checks")
    first, again = (patch_fill(spoilt(photo, HOLE), HOLE) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[~HOLE], photo[~HOLE])
    assert np.abs(first.astype(int) - photo)[HOLE].mean() < 30


MIDDLE = (np.abs(X - 60) < 14) & (np.abs(Y - 48) < 14)


@pytest.mark.parametrize(
    "hole",
    [Y < 20, X >= 100, (X < 10) & (Y < 10), (X < 12) | (X >= 108), ~MIDDLE],
    ids=["the top", "the right", "a corner", "both sides", "all but the middle"],
)
def test_holes_at_the_border(way: str, hole: np.ndarray) -> None:
    photo = texture("stripes")
    filled = patch_fill(spoilt(photo, hole), hole)
    np.testing.assert_array_equal(filled[~hole], photo[~hole])
    assert (np.abs(filled[hole].astype(int) - photo[hole]).max(axis=-1) > 8).mean() < 0.1


def test_thin_lines_and_single_pixels(way: str) -> None:
    photo = texture("checks")
    hole = (Y == 30) | ((X == 90) & (Y > 60)) | ((X == 10) & (Y == 80)) | HOLE
    filled = patch_fill(spoilt(photo, hole), hole)
    np.testing.assert_array_equal(filled[~hole], photo[~hole])
    assert (np.abs(filled.astype(int) - photo)[hole].max(axis=-1) > 8).mean() < 0.03


@pytest.mark.parametrize("shape", [(SIDE, SIDE + 1), (SIDE + 1, SIDE), (12, 12), (SIDE, 300)])
def test_a_tiny_photo(way: str, shape: tuple[int, int]) -> None:
    given = noise(*shape, 3)
    hole = np.zeros(shape, bool)
    hole[-1, -1] = True
    filled = patch_fill(given, hole)
    np.testing.assert_array_equal(filled[~hole], given[~hole])


@pytest.mark.parametrize(
    ("shape", "hole"),
    [
        ((60, 60), np.s_[:, :]),
        ((60, 60), np.s_[::4, ::4]),
        ((60, 60), np.s_[8::9]),
        ((SIDE - 1, 60), np.s_[:3, :3]),
        ((60, SIDE - 1), np.s_[:3, :3]),
        ((1, 1), np.s_[:, :]),
        ((SIDE, SIDE), np.s_[0, 0]),
    ],
    ids=["all", "specks", "lines", "low", "narrow", "a pixel", "a patch"],
)
def test_a_hole_that_leaves_nothing(way: str, shape: tuple[int, int], hole: Any) -> None:
    inside = np.zeros(shape, bool)
    inside[hole] = True
    with pytest.raises(InputError, match=r"nothing to fill the hole with.*9x9.*fill='telea'") as caught:
        patch_fill(noise(*shape, 3), inside)
    assert caught.value.parameter == "mask"


def test_a_source_that_leaves_nothing(way: str) -> None:
    for source in (np.zeros_like(HOLE), HOLE, X < 8):
        with pytest.raises(InputError, match="inside source"):
            patch_fill(noise(*SIZE, 3), HOLE, source=source)


def test_a_photo_that_is_too_large(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PIXELS", HOLE.size - 1)
    with pytest.raises(InputError, match=r"has 11520 pixels.*11519") as caught:
        patch_fill(noise(*SIZE, 3), HOLE)
    assert caught.value.parameter == "mask"


def test_a_hole_of_a_large_photo_is_filled_in_a_window() -> None:
    inside = np.zeros((3000, 4000), bool)
    inside[1000:1346, 3000:3346] = True  # 1 %
    [(left, top, right, bottom)] = module.windows(inside, None)
    assert (right - left) * (bottom - top) < 0.1 * inside.size
    assert left < 3000 and top < 1000 and right > 3346 and bottom > 1346
    source = np.zeros_like(inside)
    source[10:20, 30:40] = True
    assert module.windows(inside, source)[0][:2] == (30, 10), "the window has to hold the source"


def test_a_small_hole_of_a_large_photo(way: str) -> None:
    given = noise(3000, 4000, 3)
    inside = np.zeros(given.shape[:2], bool)
    inside[1000:1010, 3000:3010] = True
    filled = patch_fill(given, inside)
    changed = (filled != given).any(axis=-1)
    assert changed.any() and inside[changed].all()


def test_progress_rises(way: str) -> None:
    seen: list[tuple[int, int]] = []
    holes = np.zeros((60, 900), bool)
    holes[20:30, 20:30] = holes[20:30, 700:710] = True
    expected = patch_fill(noise(60, 900, 3), holes)
    filled = patch_fill(noise(60, 900, 3), holes, progress=lambda *numbers: seen.append(numbers))
    np.testing.assert_array_equal(filled, expected)
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert seen[-1] == (200, 200) and (100, 200) in seen and seen[0][0] > 0


@pytest.mark.parametrize("after", [1, 3])
def test_progress_stops(way: str, after: int) -> None:
    given, seen = noise(*SIZE, 3), 0

    def tell(done: int, of: int) -> bool:
        nonlocal seen
        seen += 1
        return seen < after

    before = given.copy()
    with pytest.raises(Stopped):
        patch_fill(given, SPOT, progress=tell)
    assert seen == after
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, InputError])
def test_an_error_of_progress_passes_through(way: str, error: type[BaseException]) -> None:
    calls = 0

    def fail(done: int, of: int) -> None:
        nonlocal calls
        calls += 1
        raise error("no")

    with pytest.raises(error, match="no"):
        patch_fill(noise(*SIZE, 3), SPOT, progress=fail)
    assert calls == 1


def test_arrays_that_are_views(way: str) -> None:
    given, hole = noise(*SIZE, 3), SPOT
    expected = patch_fill(np.ascontiguousarray(given[:, ::-1]), np.ascontiguousarray(hole[:, ::-1]))
    np.testing.assert_array_equal(patch_fill(given[:, ::-1], hole[:, ::-1]), expected)
    given.flags.writeable = False
    patch_fill(given, hole)


def test_a_warning_says_that_the_native_code_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_native_code(monkeypatch)
    with pytest.warns(
        UserWarning, match=r"without its native code.*C\+\+ compiler.*install retouch again"
    ) as seen:
        patch_fill(noise(*SIZE, 3), HOLE)
    assert seen[0].filename == __file__


@pytest.mark.skipif(importlib.util.find_spec(NATIVE) is None, reason="the native code is not built")
def test_both_ways_fill_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """They draw other random numbers, so that only their quality can be compared."""
    photo = texture("bricks")
    photo = np.clip(photo + np.random.default_rng(0).normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
    native = patch_fill(spoilt(photo, HOLE), HOLE)
    hide_native_code(monkeypatch)
    slow = patch_fill(spoilt(photo, HOLE), HOLE)
    errors = [np.abs(filled.astype(int) - photo)[HOLE].mean() for filled in (native, slow)]
    assert max(errors) < 1.5 * min(errors) < 40


@pytest.mark.skipif(importlib.util.find_spec(NATIVE) is None, reason="the native code is not built")
def test_the_native_code_refuses_sizes_that_it_cannot_count() -> None:
    native: Any = importlib.import_module(NATIVE)
    for width, height in ((8, 100), (100, 8), (2**20, 2**10), (-9, -9)):
        with pytest.raises(ValueError, match="pixels"):
            native.fill(width, height, 0, 0, 0, 0, None)


COMPILER = shutil.which("c++")
INCLUDE = Path(sysconfig.get_path("include"))


@pytest.mark.skipif(
    COMPILER is None or not (INCLUDE / "Python.h").is_file(), reason="nothing to compile with"
)
def test_the_source_compiles() -> None:
    """The native code is an optional part of the package, so an install without it says little."""
    source = Path(module.__file__).with_name("patch_fill.cpp")
    assert COMPILER is not None
    flags = ["-std=gnu++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *flags, "-isystem", str(INCLUDE), str(source)], check=True)
