"""The steps of patch_fill.cpp in numpy, for installations without the native code.

That file explains them. Here each step is done for all patches that reach into the hole at once, so that an
answer moves on by one patch in each pass of the search, not through the whole hole. A patch is named by the
index of its upper left pixel in the flat picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from retouch.images.interpolate import harmonic

SIDE = 9  # pixels of a patch; this and the numbers below are those of the native code
AREA = SIDE * SIDE
_COARSEST, _LEAST = 5 * SIDE, 3 * SIDE  # pixels: width of the hole and shorter side at the coarsest level
_ROUNDS_COARSEST, _ROUNDS_BETWEEN, _ROUNDS_FINEST = 20, 12, 4
_LARGE = 400_000  # patches of a level from which it gets fewer rounds
_TEXTURE_REACH, _TEXTURE_WEIGHT = 4, 6.0
_TRUST = 1.5
_NEARNESS = 120.0
_CHUNK = 4096  # patches that are compared at once, which keeps their pixels in the processor's cache
_NOT_SEARCHED = -1.0
_GUESSED = 1000.0 * AREA


def fill_in_numpy(
    pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray, seed: int, tell: Callable[[int, int], Any]
) -> np.ndarray | None:
    """Return `pixels` with the hole filled and its surroundings made from patches; None if `tell` stopped it.

    At least one patch has to be `usable`.
    """
    random = np.random.default_rng(seed)
    levels = list(_levels(np.dstack([pixels, _texture(pixels, inside)]), inside, usable))
    coarser: _Level | None = None
    for number in reversed(range(len(levels))):
        level = _Level(*levels[number], random)
        if not level.sources.size:
            continue
        is_first, is_finest = coarser is None, number == 0
        if coarser is None:
            level.start_anywhere()
        else:
            level.start_from(coarser)
        rounds = _ROUNDS_COARSEST if is_first else _ROUNDS_FINEST if is_finest else _ROUNDS_BETWEEN
        if not is_first and level.targets.size > _LARGE:
            rounds = 2
        settled = 0.1 if is_first else 0.05  # a mean change of pixels that ends a level
        is_last = False
        for round in range(rounds):
            is_last = is_last or round == rounds - 1
            for _ in range(5 if is_first and round == 0 else 1):
                level.search()
            changed = level.vote(and_around=is_last and is_finest)
            done = len(levels) - 1 - number + (1 if is_last else (round + 1) / rounds)
            if tell(int(100 * done / len(levels)), 100) is False:
                return None
            if is_last:
                break
            level.compare()
            is_last = changed < settled
        coarser = level
    assert coarser is not None
    return coarser.pixels.reshape(*inside.shape, 4)[..., :3].copy()


def _texture(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the mean gradient of the known surroundings of each pixel."""
    values = pixels.astype(np.float32)
    slope = np.zeros(inside.shape, np.float32)
    known = np.zeros(inside.shape, np.float32)
    for ahead in (values[1:, :-1], values[:-1, 1:]):
        slope[:-1, :-1] += np.abs(values[:-1, :-1] - ahead).mean(axis=2)
    known[:-1, :-1] = ~(inside[:-1, :-1] | inside[1:, :-1] | inside[:-1, 1:])
    reach = (2 * _TEXTURE_REACH + 1,) * 2
    total, count = (
        cv2.boxFilter(part, -1, reach, normalize=False, borderType=cv2.BORDER_CONSTANT)
        for part in (slope * known, known)
    )
    return np.clip(_TEXTURE_WEIGHT * total / np.maximum(count, 1), 0, 255).astype(np.uint8)


def _levels(
    pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the picture, its hole and what may be copied at falling sizes, while the hole is wide."""
    width = 2.0 * min(_depth(inside).max(), sum(inside.shape))
    while True:
        yield pixels, inside, usable
        if width <= _COARSEST or min(inside.shape) < 2 * _LEAST:
            return
        width /= 2
        exists, known, used = (_summed(part) for part in (np.ones_like(inside), ~inside, usable & ~inside))
        means = _summed(pixels * ~inside[..., None]) + known[..., None] // 2
        pixels = (means // np.maximum(known, 1)[..., None]).astype(np.uint8)
        inside = 2 * known < exists
        usable = ~inside & (used == known)


def _summed(values: np.ndarray) -> np.ndarray:
    """Return the sums of blocks of 2x2."""
    rows = np.add.reduceat(values, np.arange(0, len(values), 2), axis=0, dtype=np.int32)
    return np.add.reduceat(rows, np.arange(0, rows.shape[1], 2), axis=1, dtype=np.int32)


def has_patch(usable: np.ndarray) -> bool:
    """Return whether there is a patch that may be copied."""
    height, width = usable.shape
    return bool((~_in_patches(~usable))[: max(height - SIDE + 1, 0), : max(width - SIDE + 1, 0)].any())


def _in_patches(values: np.ndarray) -> np.ndarray:
    """Return for each pixel whether the patch that begins there has a true value."""
    return cv2.dilate(values.astype(np.uint8), np.ones((SIDE, SIDE), np.uint8), anchor=(0, 0)) > 0


def _depth(inside: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)


class _Level:
    """The picture at one size and, for each patch that reaches into the hole, the patch it is most like."""

    def __init__(
        self, pixels: np.ndarray, inside: np.ndarray, usable: np.ndarray, random: np.random.Generator
    ) -> None:
        self.shape, self.random = inside.shape, random
        self.height, self.width = inside.shape
        self.pixels, self.inside = pixels.reshape(-1, 4), inside.ravel()
        corners = np.zeros(inside.shape, bool)
        corners[: self.height - SIDE + 1, : self.width - SIDE + 1] = True
        self.is_source = (corners & ~_in_patches(~usable)).ravel()
        self.reaches = (corners & _in_patches(inside)).ravel()
        self.sources, self.targets = np.flatnonzero(self.is_source), np.flatnonzero(self.reaches)
        middle = np.minimum(self.targets + SIDE // 2 * (self.width + 1), inside.size - 1)
        self.trust = np.zeros(inside.size, np.float32)
        self.trust[self.targets] = _TRUST ** -_depth(inside).ravel()[middle]
        self.offsets = (np.arange(SIDE)[:, None] * self.width + np.arange(SIDE)).ravel()
        self.found = np.zeros(inside.size, np.int64)
        self.difference = np.full(inside.size, _NOT_SEARCHED, np.float32)

    def start_anywhere(self) -> None:
        self.found[self.targets] = self.random.choice(self.sources, len(self.targets))
        picture, known = self.pixels.reshape(*self.shape, 4), ~self.inside.reshape(self.shape)
        smooth = harmonic(picture, known)
        picture[~known] = np.clip(np.rint(smooth[~known]), 0, 255)
        self.compare()

    def start_from(self, coarser: _Level) -> None:
        """Take over the answers of the coarser level, and the pixels that this level has there."""
        y, x = np.divmod(self.targets, self.width)
        line = np.minimum(y // 2, coarser.height - SIDE)
        column = np.minimum(x // 2, coarser.width - SIDE)
        parent = line * coarser.width + column
        below, there = np.divmod(coarser.found[parent], coarser.width)
        below, there = 2 * below + y - 2 * line, 2 * there + x - 2 * column
        fits = (coarser.difference[parent] != _NOT_SEARCHED) & (below < self.height) & (there < self.width)
        found = np.where(fits, below * self.width + there, 0)
        fits &= self.is_source[found]
        anywhere = self.random.choice(self.sources, len(found))
        self.found[self.targets] = np.where(fits, found, anywhere)
        self.difference[self.targets] = np.where(fits, AREA, _GUESSED)
        self.vote()
        self.compare()

    def compare(self) -> None:
        self.difference[self.targets] = self.cost(self.targets, self.found[self.targets])

    def cost(self, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
        away = np.subtract(np.divmod(targets, self.width), np.divmod(sources, self.width)).astype(np.float32)
        total = _NEARNESS * AREA * np.hypot(*away) / (self.width + self.height)
        words = self.pixels.view(np.uint32).ravel()
        for start in range(0, len(targets), _CHUNK):
            part = slice(start, start + _CHUNK)
            first, second = (
                words[places[part, None] + self.offsets].view(np.uint8) for places in (targets, sources)
            )
            apart = cv2.absdiff(first, second).astype(np.float32)
            total[part] += np.einsum("ij,ij->i", apart, apart)
        return total

    def search(self) -> None:
        targets = self.targets
        for step in (-1, -self.width, 1, self.width):
            answer = self._at(self.found, targets + step) - step
            self.ask(np.where(self._at(self.reaches, targets + step), answer, -1))
        reach = max(self.shape) - SIDE + 1
        while reach:
            places = []
            for place, sides in zip(np.divmod(self.found[targets], self.width), self.shape, strict=True):
                low, high = np.maximum(place - reach, 0), np.minimum(place + reach, sides - SIDE)
                places.append(self.random.integers(low, high + 1))
            self.ask(places[0] * self.width + places[1])
            reach //= 2

    @staticmethod
    def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.take(values, places, mode="clip")

    def ask(self, candidates: np.ndarray) -> None:
        """Take each candidate that is more like its target than the best one so far."""
        possible = (
            (candidates >= 0) & (candidates < len(self.found)) & (candidates != self.found[self.targets])
        )
        possible &= self._at(self.is_source, candidates)
        targets, candidates = self.targets[possible], candidates[possible]
        apart = self.cost(targets, candidates)
        better = apart < self.difference[targets]
        self.found[targets[better]] = candidates[better]
        self.difference[targets[better]] = apart[better]

    def vote(self, and_around: bool = False) -> float:
        """Give pixels the mean of their patches; return by how much those of the hole changed in the mean.

        All pixels that a patch covers get one with `and_around`, otherwise those of the hole.
        """
        if and_around:
            covered = np.zeros(self.shape, bool)
            y, x = np.divmod(self.targets, self.width)
            for down, across in np.ndindex(SIDE, SIDE):
                covered[y + down, x + across] = True
            places = np.flatnonzero(covered)
        else:
            places = np.flatnonzero(self.inside)
        voted = self.pixels.copy()
        for start in range(0, len(places), _CHUNK):
            part = places[start : start + _CHUNK]
            voted[part] = self._means(part) + 0.5
        changed = cv2.absdiff(voted, self.pixels)[self.inside]
        self.pixels = voted
        return float(changed.mean()) if changed.size else 0.0

    def _means(self, places: np.ndarray) -> np.ndarray:
        # A negative index, or one left of a row, is at the end of a row or of the picture: no patch is there.
        patches = places[:, None] - self.offsets
        counts = self.reaches[patches]
        apart = np.where(counts, self.difference[patches], np.inf)
        least = apart.min(axis=1, keepdims=True)
        third = counts.sum(axis=1, keepdims=True) * 3 // 4
        usual = np.maximum(np.take_along_axis(np.sort(apart, axis=1), third, axis=1), AREA)
        weight = counts * (self.trust[patches] * np.exp((least - apart) / usual) + 1e-12)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.einsum("nk,nkc->nc", weight, self.pixels[self.found[patches] + counts * self.offsets])
