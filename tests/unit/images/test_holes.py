"""Every way to say what to repaint, and the crops that come of it."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as some
from PIL import Image
from scipy.ndimage import distance_transform_edt

from retouch.errors import InputError
from retouch.images.holes import Hole, crops, read_hole

SIZE = (40, 30)


def levels(left: int = 10, top: int = 5, right: int = 25, bottom: int = 20, value: int = 255) -> np.ndarray:
    values = np.zeros((30, 40), np.uint8)
    values[top:bottom, left:right] = value
    return values


HARD = levels()
PICTURE = Image.fromarray(HARD)


def with_alpha(luma: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(luma), Image.fromarray(alpha)))


PLAIN = np.full((30, 40), 90, np.uint8)
OPAQUE = np.full((30, 40), 255, np.uint8)
JPEG = (HARD + np.random.default_rng(0).integers(-9, 10, HARD.shape)).clip(0, 255).astype(np.uint8)


class TestKinds:
    @pytest.mark.parametrize(
        "mask",
        [
            PICTURE,
            PICTURE.convert("1"),
            PICTURE.convert("RGB"),
            PICTURE.convert("P"),
            PICTURE.convert("RGBA"),
            PICTURE.convert("LA"),
            Image.fromarray(HARD.astype(np.uint16) * 257),
            Image.fromarray(JPEG),
            with_alpha(PLAIN, HARD),
            HARD > 0,
            HARD,
            HARD // 255,
            HARD.astype(np.int64),
            HARD / 255,
            (HARD / 255)[..., None],
            np.repeat(HARD[..., None], 3, axis=2),
            torch.from_numpy(HARD / 255),
            (10, 5, 25, 20),
            [10, 5, 25, 20],
            (9.6, 5.2, 25.4, 19.9),
            (np.int64(10), np.int64(5), np.float32(25), 20),
            [(10, 5), (24, 5), (24, 19), (10, 19)],
            [(10, 5, 25, 12), (10, 12, 25, 20)],
            [PICTURE, HARD > 0, (12, 6, 20, 10)],
            [[(10, 5), (24, 5), (24, 19), (10, 19)], (10, 5, 25, 20)],
        ],
        ids=lambda mask: f"{mask.mode if isinstance(mask, Image.Image) else ''}{type(mask).__name__}",
    )
    def test_all_mean_the_same(self, mask: Any) -> None:
        np.testing.assert_array_equal(read_hole(mask, SIZE).levels, HARD)

    def test_a_path_and_bytes(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        PICTURE.save(file, "PNG")
        (tmp_path / "mask.png").write_bytes(file.getvalue())
        for source in (tmp_path / "mask.png", str(tmp_path / "mask.png"), file.getvalue()):
            np.testing.assert_array_equal(read_hole(source, SIZE).levels, HARD)

    def test_greys_stay(self) -> None:
        soft = levels(value=100)
        soft[8, 12] = 200
        np.testing.assert_array_equal(read_hole(Image.fromarray(soft), SIZE).levels, soft)
        np.testing.assert_array_equal(read_hole(soft / 255, SIZE).levels, soft)

    def test_alpha_or_luminance_by_name(self) -> None:
        alpha = levels(0, 0, 5, 5)
        mask = with_alpha(HARD, alpha)
        with pytest.raises(InputError, match=r"could mean either.*mask_mode='luma' or mask_mode='alpha'"):
            read_hole(mask, SIZE)
        np.testing.assert_array_equal(read_hole(mask, SIZE, mask_mode="luma").levels, HARD)
        np.testing.assert_array_equal(read_hole(mask, SIZE, mask_mode="alpha").levels, alpha)
        np.testing.assert_array_equal(read_hole(with_alpha(HARD, OPAQUE), SIZE).levels, HARD)
        with pytest.raises(InputError, match=r"could mean either"):
            read_hole(with_alpha(HARD, np.full((30, 40), 128, np.uint8)), SIZE)
        with pytest.raises(InputError, match=r"could mean either"):
            read_hole(with_alpha(OPAQUE, OPAQUE // 2), SIZE)

    def test_a_box_may_reach_over_the_edge(self) -> None:
        found = read_hole((-5, -9, 8, 6), SIZE).levels
        np.testing.assert_array_equal(found, levels(0, 0, 8, 6))

    def test_the_given_array_is_not_changed(self) -> None:
        given = JPEG.copy()
        read_hole(given, SIZE, grow=2)
        np.testing.assert_array_equal(given, JPEG)


class TestRefusals:
    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (Image.new("L", SIZE), r"mask is empty.*invert=True"),
            (np.zeros((30, 40), bool), r"mask is empty"),
            (Image.new("L", SIZE, 12), r"mask is empty"),
            ((50, 5, 60, 10), r"mask is empty"),
            (Image.new("L", SIZE, 255), r"all white.*invert=True"),
            ((0, 0, 40, 30), r"all white"),
            (Image.new("L", SIZE, 244), r"all white"),
            (PICTURE.resize((20, 15)), r"mask is 20x15 but the photo is 40x30.*fit_mask=True"),
            (np.ones((40, 30), bool), r"mask is 30x40 but the photo is 40x30"),
            (np.full((30, 40), np.nan), r"The mask contains NaN"),
            (np.full((30, 40), np.inf), r"The mask contains NaN or infinite"),
            (np.full((30, 40), -0.5), r"The mask has values"),
            (HARD.astype(np.float64), r"The mask has values"),
            (HARD.astype(np.int32) * 3, r"The mask holds integers from 0 to 765"),
            (np.zeros((2, 30, 40), bool), r"which is 2 masks"),
            (np.zeros((30, 40, 4), np.uint8), r"4 channels"),
            (np.zeros((0, 40), bool), r"no side of length 0"),
            (np.zeros(40, bool), r"shape \(40,\)"),
            (np.full((30, 40), "a"), r"Accepted are bool, integers"),
            ((10, 5, 25), r"box \(10, 5, 25\) is not"),
            ((25, 5, 10, 20), r"left < right"),
            ((10, 5, math.nan, 20), r"box .* is not"),
            ((10, 5, math.inf, 20), r"box .* is not"),
            ((0.2, 0.2, 0.8, 0.8), r"fractions of the photo.*40x30"),
            ([(1, 1), (5, 5)], r"polygon has 2 points"),
            ([(1, 1), (5, 5), (math.nan, 3)], r"not finite"),
            ([(1, 1), (5, 5), (math.inf, 3)], r"not finite"),
            ([], r"empty list"),
            ([[]], r"empty list"),
            (b"", r"The mask cannot be used. the given 0 bytes cannot be read"),
            ("nowhere.png", r"The mask cannot be used. 'nowhere.png' is neither"),
            (None, r"The mask cannot be used. image is a NoneType"),
            (Image.new("LAB", SIZE), r"mask has mode LAB"),
        ],
    )
    def test_masks(self, mask: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_hole(mask, SIZE)

    def test_options(self) -> None:
        with pytest.raises(InputError, match="mask_mode='colour' is unknown"):
            read_hole(PICTURE, SIZE, mask_mode="colour")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="has no alpha channel"):
            read_hole(PICTURE, SIZE, mask_mode="alpha")
        with pytest.raises(InputError, match=r"grow=nan is not a number"):
            read_hole(PICTURE, SIZE, grow=math.nan)
        with pytest.raises(InputError, match=r"grow=-8 leaves nothing"):
            read_hole(PICTURE, SIZE, grow=-8)
        with pytest.raises(InputError, match="all white"):
            read_hole(PICTURE, SIZE, grow=100)


class TestChanges:
    def test_invert(self) -> None:
        np.testing.assert_array_equal(read_hole(PICTURE, SIZE, invert=True).levels, 255 - HARD)

    @pytest.mark.parametrize("by", [0.5, 1, 2.5, 4, -1, -3.2])
    def test_grow_is_by_distance(self, by: float) -> None:
        found = read_hole(PICTURE, SIZE, grow=by).levels
        inside = HARD > 0
        to_hole, to_rest = distance_transform_edt(~inside), distance_transform_edt(inside)
        expected = to_hole <= by if by > 0 else to_rest > -by
        np.testing.assert_array_equal(found > 0, expected)

    def test_growing_keeps_soft_edges(self) -> None:
        soft = levels()
        soft[:, 30:35] = 60
        grown = read_hole(soft, SIZE, grow=2).levels
        assert (grown[5:20, 10:25] == 255).all() and (grown[:, 30:35] == 60).all()
        assert (read_hole(levels(value=100), SIZE, grow=3).levels == levels(value=100)).all(), (
            "no core to grow"
        )

    def test_fit_mask(self) -> None:
        found = read_hole(PICTURE.resize((80, 60), Image.Resampling.NEAREST), SIZE, fit_mask=True).levels
        assert (np.abs(found.astype(int) - HARD) < 128).all()

    def test_what_is_told(self) -> None:
        hole = read_hole(PICTURE, SIZE)
        assert hole.coverage == 15 * 15 / 1200 and hole.box == (10, 5, 25, 20)
        assert hole.image().mode == "L" and (np.asarray(hole.image()) == HARD).all()
        assert hole.values.dtype == np.float32 and hole.values.max() == 1 and hole.inside.sum() == 225


def hole_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (1000, 800)) -> Hole:
    return read_hole(list(boxes), size)


class TestCrops:
    def test_context_in_per_cent_and_pixels(self) -> None:
        hole = hole_of((400, 300, 600, 450))
        for context, margin in (("50%", 100), (" 25 %", 50), (70, 70), ("100%", 200)):
            (crop,) = crops(hole, 512, context=context)
            assert crop.box[0] == 400 - margin and crop.box[2] == 600 + margin
        (crop,) = crops(hole, 512, context=0)
        assert 8 <= 400 - crop.box[0] <= 20, "the join needs a ring"
        (crop,) = crops(hole, 512, context=0, feather=50)
        assert 58 <= 400 - crop.box[0] <= 70, "and room for its feather"

    @pytest.mark.parametrize("context", ["fifty", "-5%", -1, "nan%", math.nan, "inf%", "50", None, [1]])
    def test_context_that_means_nothing(self, context: Any) -> None:
        with pytest.raises(InputError, match=r"context=.* is not understood. Give pixels"):
            crops(hole_of((400, 300, 600, 450)), 512, context=context)

    def test_a_tiny_hole_gets_surroundings(self) -> None:
        (crop,) = crops(hole_of((500, 400, 503, 402)), 512)
        assert min(crop.size) >= 512 / 4 * 0.6

    def test_at_the_photos_edge_the_crop_moves_inwards(self) -> None:
        (crop,) = crops(hole_of((0, 700, 100, 800)), 512)
        assert crop.box == (0, 600, 200, 800) and (crop.width, crop.height) == (512, 512)

    def test_near_parts_share_a_crop_and_far_ones_do_not(self) -> None:
        near = crops(hole_of((100, 100, 140, 140), (170, 100, 200, 140)), 512)
        far = crops(hole_of((100, 100, 140, 140), (800, 600, 840, 640)), 512)
        assert len(near) == 1 and len(far) == 2
        chained = crops(hole_of(*((x, 100, x + 40, 140) for x in range(50, 900, 70))), 512)
        assert len(chained) == 1

    @pytest.mark.parametrize("working", [512, 768, 1024])
    @pytest.mark.parametrize(
        "size", [(1000, 800), (517, 389), (3000, 500), (500, 2900), (640, 640), (37, 60), (4032, 3024)]
    )
    def test_the_aspect_is_kept(self, working: int, size: tuple[int, int]) -> None:
        hole = read_hole((0, 0, size[0] - 1, size[1]), size)
        (crop,) = crops(hole, working)
        assert crop.width % 8 == crop.height % 8 == 0
        across, down = crop.width / crop.size[0], crop.height / crop.size[1]
        assert abs(across / down - 1) < 0.01
        assert crop.width * crop.height == pytest.approx(working**2, rel=0.05)

    @pytest.mark.parametrize("size", [(1, 10000), (10000, 1), (3, 500)])
    def test_a_thread_of_a_photo_is_stretched(self, size: tuple[int, int]) -> None:
        (crop,) = crops(read_hole((0, 0, max(1, size[0] // 3), max(1, size[1] // 3)), size), 512)
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
        values = np.zeros((height, width), np.uint8)
        for _ in range(count):
            x, y = draw.integers(0, width), draw.integers(0, height)
            values[y : y + draw.integers(1, 20), x : x + draw.integers(1, 20)] = draw.integers(1, 256)
        context = data.draw(some.sampled_from(["50%", 0, "300%"]))
        found = crops(Hole(values), 64, context=context)
        times = np.zeros((height, width), int)
        for crop in found:
            left, top, right, bottom = crop.box
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert crop.width % 8 == crop.height % 8 == 0 and crop.of(values).any()
            crop.of(times)[:] += 1
        assert times.max() == 1 and (times[values > 0] == 1).all()
        assert found == sorted(found, key=lambda crop: crop.box)

    def test_thousands_of_specks_take_no_time(self) -> None:
        values = np.zeros((3000, 4000), np.uint8)
        values[::30, ::40] = 255
        start = time.perf_counter()
        assert len(crops(Hole(values), 512, context=0)) == 1  # each speck's surroundings meet the next one's
        values[:] = 0
        values[50::400, 50::400] = 255
        assert len(crops(Hole(values), 512, context=0)) == 80
        assert time.perf_counter() - start < 5
