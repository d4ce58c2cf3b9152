"""Crops around the holes of a mask: their boxes, their working sizes, and that none overlap."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as some

from retouch.errors import InputError
from retouch.images.crops import crops
from retouch.images.mask import Mask
from retouch.images.mask_reading import read_photo_mask


def mask_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (1000, 800)) -> Mask:
    return read_photo_mask(list(boxes), size)


class TestCrops:
    def test_context_in_per_cent_and_pixels(self) -> None:
        mask = mask_of((400, 300, 600, 450))
        for context, margin in (("50%", 100), (" 25 %", 50), (70, 70), ("100%", 200)):
            (crop,) = crops(mask, 512, context=context)
            assert crop.box[0] == 400 - margin and crop.box[2] == 600 + margin
        (crop,) = crops(mask, 512, context=0)
        assert 8 <= 400 - crop.box[0] <= 20, "the join needs a ring"
        (crop,) = crops(mask, 512, context=0, feather=50)
        assert 58 <= 400 - crop.box[0] <= 70, "and room for its feather"

    @pytest.mark.parametrize("context", ["fifty", "-5%", -1, "nan%", math.nan, "inf%", "50", None, [1]])
    def test_context_that_means_nothing(self, context: Any) -> None:
        with pytest.raises(InputError, match=r"context=.* is not understood. Give pixels") as caught:
            crops(mask_of((400, 300, 600, 450)), 512, context=context)
        assert caught.value.parameter == "context"

    def test_a_tiny_hole_gets_surroundings(self) -> None:
        (crop,) = crops(mask_of((500, 400, 503, 402)), 512)
        assert min(crop.size) >= 512 / 4 * 0.6

    def test_at_the_photos_edge_the_crop_moves_inwards(self) -> None:
        (crop,) = crops(mask_of((0, 700, 100, 800)), 512)
        assert crop.box == (0, 600, 200, 800) and (crop.width, crop.height) == (512, 512)

    def test_near_parts_share_a_crop_and_far_ones_do_not(self) -> None:
        near = crops(mask_of((100, 100, 140, 140), (170, 100, 200, 140)), 512)
        far = crops(mask_of((100, 100, 140, 140), (800, 600, 840, 640)), 512)
        assert len(near) == 1 and len(far) == 2
        chained = crops(mask_of(*((x, 100, x + 40, 140) for x in range(50, 900, 70))), 512)
        assert len(chained) == 1

    @pytest.mark.parametrize("working", [512, 768, 1024])
    @pytest.mark.parametrize(
        "size", [(1000, 800), (517, 389), (3000, 500), (500, 2900), (640, 640), (37, 60), (4032, 3024)]
    )
    def test_the_aspect_is_kept(self, working: int, size: tuple[int, int]) -> None:
        mask = read_photo_mask((0, 0, size[0] - 1, size[1]), size)
        (crop,) = crops(mask, working)
        assert crop.width % 8 == crop.height % 8 == 0
        across, down = crop.width / crop.size[0], crop.height / crop.size[1]
        assert abs(across / down - 1) < 0.01
        assert crop.width * crop.height == pytest.approx(working**2, rel=0.05)

    @pytest.mark.parametrize("size", [(1, 10000), (10000, 1), (3, 500)])
    def test_a_thread_of_a_photo_is_stretched(self, size: tuple[int, int]) -> None:
        (crop,) = crops(read_photo_mask((0, 0, max(1, size[0] // 3), max(1, size[1] // 3)), size), 512)
        assert max(crop.width, crop.height) <= 8.2 * min(crop.width, crop.height)
        assert crop.width * crop.height == pytest.approx(512**2, rel=0.05)

    @settings(max_examples=60, deadline=None)
    @given(
        some.integers(2, 400),
        some.integers(2, 400),
        some.integers(1, 12),
        some.integers(0, 2**32),
        some.data(),
    )
    def test_crops_hold_their_parts_and_never_overlap(
        self, width: int, height: int, count: int, seed: int, data: Any
    ) -> None:
        draw = np.random.default_rng(seed)
        values = np.zeros((height, width), np.float32)
        for _ in range(count):
            x, y = draw.integers(0, width), draw.integers(0, height)
            values[y : y + draw.integers(1, 20), x : x + draw.integers(1, 20)] = draw.uniform(0.004, 1)
        context = data.draw(some.sampled_from(["50%", 0, "300%"]))
        found = crops(Mask(values), 64, context=context)
        times = np.zeros((height, width), int)
        for crop in found:
            left, top, right, bottom = crop.box
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert crop.width % 8 == crop.height % 8 == 0 and crop.of(values).any()
            crop.of(times)[:] += 1
        assert times.max() == 1 and (times[values > 0] == 1).all()
        assert found == sorted(found, key=lambda crop: crop.box)

    def test_thousands_of_specks_take_no_time(self) -> None:
        values = np.zeros((3000, 4000), np.float32)
        values[::30, ::40] = 1
        start = time.perf_counter()
        assert len(crops(Mask(values), 512, context=0)) == 1  # each speck's surroundings meet the next one's
        values[:] = 0
        values[50::400, 50::400] = 1
        assert len(crops(Mask(values), 512, context=0)) == 80
        assert time.perf_counter() - start < 5
