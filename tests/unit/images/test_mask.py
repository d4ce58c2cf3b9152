"""The one value of masks: reading every form, and each rule about levels."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

from retouch.errors import InputError
from retouch.images.mask import Mask
from retouch.images.mask_reading import read_masks, read_photo_mask

GREY = np.array([[0, 51, 102, 255, 3], [128, 127, 1, 254, 4], [255, 0, 0, 7, 5]], np.uint8)
FRACTIONS = GREY.astype(np.float32) / 255
READ = np.where(GREY < 13, 0, np.where(GREY > 242, 1, FRACTIONS)).astype(np.float32)


def read(value: object) -> Mask:
    (mask,) = read_masks(value)
    return mask


def assert_levels(value: object, *expected: np.ndarray, tolerance: float = 0) -> None:
    masks = read_masks(value)
    assert len(masks) == len(expected)
    for mask, levels in zip(masks, expected, strict=True):
        assert mask.levels.dtype == np.float32
        np.testing.assert_allclose(mask.levels, levels, rtol=0, atol=tolerance)


class TestReading:
    def test_pictures_of_every_mode(self) -> None:
        grey = Image.fromarray(GREY)
        for mode in "L", "LA", "RGB", "RGBA", "P":
            assert_levels(grey.convert(mode), READ)
        assert_levels(grey.point(lambda level: 255 * (level > 100)).convert("1"), GREY > 100)
        assert_levels(Image.fromarray(GREY.astype(np.uint16) * 257), READ)
        assert_levels(Image.fromarray(GREY.astype(np.int32) * 257), READ)
        assert_levels(Image.fromarray(GREY.astype(np.int32)), READ)
        assert_levels(Image.fromarray(GREY.astype(np.float32)), READ)
        assert_levels(Image.fromarray(FRACTIONS), READ, tolerance=1e-7)

    def test_sixteen_bits_keep_their_levels(self) -> None:
        levels = np.array([[0, 3000, 32767, 32768, 65535]], np.uint16)
        expected = np.array([[0, 0, 32767 / 65535, 32768 / 65535, 1]], np.float32)
        assert_levels(Image.fromarray(levels), expected)
        assert_levels(levels, expected, tolerance=1e-7)

    def test_colour_counts_by_luminance(self) -> None:
        colours = np.random.default_rng(0).integers(30, 230, (5, 4, 3), dtype=np.uint8)
        expected = np.asarray(Image.fromarray(colours).convert("L")).astype(np.float32) / 255
        assert_levels(Image.fromarray(colours), expected)
        half_a_level = 0.51 / 255
        assert_levels(colours, expected, tolerance=half_a_level)
        assert_levels((colours / 255).astype(np.float32), expected, tolerance=half_a_level)
        assert_levels(torch.from_numpy(colours / 255).movedim(-1, 0)[None], expected, tolerance=half_a_level)
        assert read(np.ones((2, 2, 3), np.float32)).is_full  # white is exactly 1

    def test_arrays_and_tensors_of_every_shape(self) -> None:
        array, tensor = FRACTIONS, torch.from_numpy(FRACTIONS)
        for single in (
            *(array, array[..., None], array[None], array[None, ..., None]),
            *(tensor, tensor[None], tensor[None, None]),
        ):
            assert_levels(single, READ)
        two = torch.stack([tensor, 1 - tensor])
        for pair in (
            *(two, two[:, None], two.numpy(), two.numpy()[..., None]),
            *([array, 1 - array], [tensor[None], 1 - tensor], (Image.fromarray(GREY), 1 - array)),
        ):
            assert_levels(pair, READ, 1 - READ, tolerance=1e-6)
        three = torch.stack([tensor, tensor, tensor])
        assert len(read_masks(three)) == 3  # a tensor's first dimension is the batch, not the colour

    def test_masks_of_one_call_may_have_different_sizes(self) -> None:
        small, large = read_masks([np.ones((4, 4)), Image.new("L", (5, 6), 255)])
        assert (small.size, large.size) == ((4, 4), (5, 6))

    def test_a_mask_is_taken_as_it_is(self) -> None:
        mask = Mask(np.full((2, 3), 0.01, np.float32))
        assert read_masks([mask, mask]) == [mask, mask]

    def test_every_dtype(self) -> None:
        hard = torch.from_numpy(FRACTIONS) > 0.4
        assert_levels(GREY, READ)
        assert_levels(GREY.astype(np.int64), READ)
        assert_levels(GREY.astype(np.uint16) * 257, READ, tolerance=1e-7)
        assert_levels(GREY.astype(">i4"), READ)
        assert_levels(torch.from_numpy(GREY), READ)
        for flags in hard, hard.numpy(), hard.to(torch.uint8), hard.numpy().astype(np.int64), hard.double():
            assert_levels(flags, hard.numpy())
        assert_levels(np.zeros((2, 2), np.uint8), np.zeros((2, 2)))
        for dtype in torch.float16, torch.bfloat16, torch.float32, torch.float64:
            assert_levels(torch.from_numpy(FRACTIONS).to(dtype), READ, tolerance=0.01)

    def test_views_and_locked_arrays_are_read_without_a_warning(self) -> None:
        locked = FRACTIONS.copy()
        locked.flags.writeable = False
        assert_levels(locked, READ)
        assert_levels(locked[::-1, ::-1], READ[::-1, ::-1])

    def test_what_was_given_is_not_changed(self) -> None:
        given = torch.from_numpy(FRACTIONS.copy())
        assert_levels(given, READ)
        assert given.equal(torch.from_numpy(FRACTIONS))

    @pytest.mark.parametrize(
        ("mask", "reason"),
        [
            (np.array([[0.0, np.nan]]), "NaN"),
            (torch.tensor([[0.0, torch.inf]]), "infinite"),
            (np.array([[0.0, 255.0]]), "from 0 to 255.*Divide them by 255"),
            (np.array([[-1.0, 1.0]]), "from -1 to 1.*Floats from 0 to 1"),
            (np.array([[0, 256]]), "integers from 0 to 256"),
            (np.array([[-1, 1]]), "integers from -1 to 1"),
            (np.zeros((4, 4, 4)), "4 channels"),
            (torch.zeros(1, 2, 4, 4), "2 channels"),
            (np.zeros(5), r"shape \(5,\)"),
            (np.zeros((1, 2, 3, 4, 5)), "shape"),
            (np.zeros((0, 4)), r"shape \(0, 4\)"),
            (np.array([["a"]]), "<U1"),
            (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
            ([], "empty list"),
            ("mask.png", "of type str.*load_image"),
            (None, "NoneType"),
            (Image.new("L", (0, 3)), "no pixels"),
            (Image.new("F", (0, 3)), "no pixels"),
        ],
    )
    def test_wrong_masks_are_refused(self, mask: object, reason: str) -> None:
        with pytest.raises(InputError, match=reason) as caught:
            read_masks(mask, "my_mask")
        assert caught.value.parameter == "my_mask"

    def test_transparent_masks_are_ambiguous(self) -> None:
        mask = Image.fromarray(GREY).convert("LA")
        mask.putpixel((0, 0), (0, 0))
        with pytest.raises(InputError, match="could be its brightness or its alpha") as caught:
            read_masks(mask)
        assert caught.value.parameter == "mask_image"
        assert_levels(mask.convert("L"), READ)
        assert read(mask.getchannel("A")).levels[0, :2].tolist() == [0, 1]


SIZE = (40, 30)


def box_of(left: int = 10, top: int = 5, right: int = 25, bottom: int = 20, value: int = 255) -> np.ndarray:
    values = np.zeros((30, 40), np.uint8)
    values[top:bottom, left:right] = value
    return values


HARD = box_of()
PICTURE = Image.fromarray(HARD)
PLAIN = np.full((30, 40), 90, np.uint8)
OPAQUE = np.full((30, 40), 255, np.uint8)
JPEG = (HARD + np.random.default_rng(0).integers(-9, 10, HARD.shape)).clip(0, 255).astype(np.uint8)


def with_alpha(luma: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(luma), Image.fromarray(alpha)))


def shown(mask: Mask) -> np.ndarray:
    return np.asarray(mask.image())


class TestOfAPhoto:
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
            Mask(HARD / np.float32(255), "lanczos"),
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
        found = read_photo_mask(mask, SIZE)
        np.testing.assert_array_equal(shown(found), HARD)
        assert not found.is_soft and found.resampling == "bilinear"

    def test_a_path_and_bytes(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        PICTURE.save(file, "PNG")
        (tmp_path / "mask.png").write_bytes(file.getvalue())
        for source in (tmp_path / "mask.png", str(tmp_path / "mask.png"), file.getvalue()):
            np.testing.assert_array_equal(shown(read_photo_mask(source, SIZE)), HARD)

    def test_greys_stay(self) -> None:
        soft = box_of(value=100)
        soft[8, 12] = 200
        np.testing.assert_array_equal(shown(read_photo_mask(Image.fromarray(soft), SIZE)), soft)
        np.testing.assert_array_equal(shown(read_photo_mask(soft / 255, SIZE)), soft)

    def test_alpha_or_luminance_by_name(self) -> None:
        alpha = box_of(0, 0, 5, 5)
        mask = with_alpha(HARD, alpha)
        with pytest.raises(InputError, match=r"could mean either.*'luma'.*'alpha'") as caught:
            read_photo_mask(mask, SIZE)
        assert caught.value.parameter == "mask_mode"
        np.testing.assert_array_equal(shown(read_photo_mask(mask, SIZE, mask_mode="luma")), HARD)
        np.testing.assert_array_equal(shown(read_photo_mask(mask, SIZE, mask_mode="alpha")), alpha)
        np.testing.assert_array_equal(shown(read_photo_mask(with_alpha(HARD, OPAQUE), SIZE)), HARD)
        with pytest.raises(InputError, match=r"could mean either"):
            read_photo_mask(with_alpha(HARD, np.full((30, 40), 128, np.uint8)), SIZE)
        with pytest.raises(InputError, match=r"could mean either"):
            read_photo_mask(with_alpha(OPAQUE, OPAQUE // 2), SIZE)
        with pytest.raises(InputError, match="has no alpha channel"):
            read_photo_mask(PICTURE, SIZE, mask_mode="alpha")

    def test_a_box_may_reach_over_the_edge(self) -> None:
        np.testing.assert_array_equal(shown(read_photo_mask((-5, -9, 8, 6), SIZE)), box_of(0, 0, 8, 6))

    def test_the_given_array_is_not_changed(self) -> None:
        given = JPEG.copy()
        read_photo_mask(given, SIZE, grow=2)
        np.testing.assert_array_equal(given, JPEG)

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
            (np.full((30, 40), np.nan), r"mask contains NaN"),
            (np.full((30, 40), np.inf), r"mask contains NaN or infinite"),
            (np.full((30, 40), -0.5), r"mask has values"),
            (HARD.astype(np.float64), r"mask has values"),
            (HARD.astype(np.int32) * 3, r"mask holds integers from 0 to 765"),
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
            (b"", r"mask cannot be used. the given 0 bytes cannot be read"),
            ("nowhere.png", r"mask cannot be used. 'nowhere.png' is neither"),
            (None, r"mask cannot be used. image is a NoneType"),
            (Image.new("LAB", SIZE), r'mask has mode "LAB"'),
        ],
    )
    def test_refusals(self, mask: Any, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            read_photo_mask(mask, SIZE)
        assert caught.value.parameter == "mask"

    def test_invert(self) -> None:
        np.testing.assert_array_equal(shown(read_photo_mask(PICTURE, SIZE, invert=True)), 255 - HARD)

    def test_grow(self) -> None:
        grown = read_photo_mask(PICTURE, SIZE, grow=1)
        assert grown.box == (9, 4, 26, 21)
        with pytest.raises(InputError, match=r"grow=-8 leaves nothing") as caught:
            read_photo_mask(PICTURE, SIZE, grow=-8)
        assert caught.value.parameter == "grow"
        with pytest.raises(InputError, match="all white"):
            read_photo_mask(PICTURE, SIZE, grow=100)

    def test_fit_mask(self) -> None:
        large = PICTURE.resize((80, 60), Image.Resampling.NEAREST)
        found = read_photo_mask(large, SIZE, fit_mask=True)
        np.testing.assert_array_equal(found.hard, HARD > 0)


class TestFacts:
    def test_of_a_hard_mask(self) -> None:
        mask = read_photo_mask(PICTURE, SIZE)
        assert mask.coverage == 15 * 15 / 1200 and mask.box == (10, 5, 25, 20)
        assert (mask.width, mask.height) == mask.size == SIZE
        assert mask.inside.sum() == mask.hard.sum() == 225
        assert not (mask.is_empty or mask.is_full or mask.is_soft)
        assert mask.image().mode == "L" and mask.tensor().shape == (1, 1, 30, 40)
        assert mask.tensor().sum() == 225

    def test_of_greys(self) -> None:
        mask = read(np.array([[0, 0.3, 0.6, 0.5]], np.float32))
        assert mask.is_soft and mask.coverage == 0.5 and mask.inside.sum() == 3
        assert mask.hardened().levels.tolist() == [[0, 0, 1, 1]] and not mask.hardened().is_soft
        assert not read(np.array([[0.04, 0.96]], np.float32)).is_soft

    def test_of_all_and_nothing(self) -> None:
        nothing, all_of_it = read(np.full((3, 3), 0.04)), read(np.full((3, 3), 0.96))
        assert nothing.is_empty and not nothing.is_full
        assert all_of_it.is_full and not all_of_it.is_empty

    def test_holes_are_the_connected_parts(self) -> None:
        levels = np.zeros((100, 200), np.float32)
        levels[10:20, 10:30] = 1
        levels[22:25, 12:14] = 0.3  # nearer than a few pixels
        levels[60:70, 150:190] = 1
        assert Mask(levels).holes() == [(10, 10, 30, 25), (150, 60, 190, 70)]


class TestChanges:
    @pytest.mark.parametrize("by", [0.5, 1, 2.5, 4, -1, -3.2])
    def test_growing_is_by_distance(self, by: float) -> None:
        found = read(PICTURE).grown(by)
        inside = HARD > 0
        to_hole, to_rest = distance_transform_edt(~inside), distance_transform_edt(inside)
        expected = to_hole <= by if by > 0 else to_rest > -by
        np.testing.assert_array_equal(found.inside, expected)

    def test_growing_keeps_soft_edges(self) -> None:
        soft = box_of()
        soft[:, 30:35] = 60
        grown = shown(read(soft).grown(2))
        assert (grown[5:20, 10:25] == 255).all() and (grown[:, 30:35] == 60).all()
        faint = box_of(value=100)
        np.testing.assert_array_equal(shown(read(faint).grown(3)), faint, "no core to grow")
        assert read(np.zeros((3, 3))).grown(5).is_empty

    def test_softening_is_exact(self) -> None:
        y, x = np.mgrid[0:160, 0:200]
        disc = np.hypot(x - 100, y - 80) < 35
        away = distance_transform_edt(~disc)
        for feather in (0.9, 3, 7.5):
            alpha = read(disc).softened(feather).levels
            assert (alpha[away > feather] == 0).all() and (alpha[away <= feather] > 0).all()
            assert (alpha[disc] == 1).all() and alpha.dtype == np.float32
        assert read(np.zeros((3, 3))).softened(5).is_empty
        faint = Mask(np.full((3, 3), 0.3, np.float32))
        assert (faint.softened(5).levels == np.float32(0.3)).all()
        assert (Mask(np.full((3, 3), 0.6, np.float32)).softened(0)).is_full

    def test_union_and_inverse(self) -> None:
        first, second = read(np.array([[0, 0.3, 1]])), read(np.array([[0.2, 0, 0.4]]))
        np.testing.assert_allclose(first.union(second).levels, [[0.2, 0.3, 1]])
        np.testing.assert_allclose(first.inverted().levels, [[1, 0.7, 0]])

    def test_cropping_and_padding(self) -> None:
        mask = read(PICTURE)
        part = mask.cropped((8, 4, 20, 21))
        assert part.size == (12, 17) and part.box == (2, 1, 12, 16)
        padded = mask.padded(16)
        assert padded.size == (48, 32) and padded.levels.sum() == mask.levels.sum()
        np.testing.assert_array_equal(padded.cropped((0, 0, *SIZE)).levels, mask.levels)
        assert mask.padded(5) is mask

    def test_the_way_to_latents(self) -> None:
        levels = np.zeros((16, 24), np.float32)
        levels[0, 0], levels[9, 17] = 1, 0.6
        mask = Mask(levels)
        # The pixel at the cell's corner counts.
        assert mask.to_latents(2, 3).tolist() == [[[[1, 0, 0], [0, 0, 0]]]]
        whole = mask.touching(8)
        np.testing.assert_allclose(whole.to_latents(2, 3)[0, 0], [[1, 0, 0], [0, 0, 0.6]])
        assert whole.size == mask.size and whole.levels[:8, :8].min() == 1
        odd = Mask(levels[:11, :19]).touching(8)
        assert odd.size == (19, 11) and odd.levels[10, 18] == np.float32(0.6)

    def test_touched_pixels_of_another_size(self) -> None:
        levels = np.zeros((8, 12), np.float32)
        levels[3, 5] = 0.1
        assert Mask(levels).touched(3, 2).levels.tolist() == [[0, 1, 0], [0, 0, 0]]
        assert np.argwhere(Mask(levels).touched(8, 8).levels).tolist() == [[3, 3]]
        larger = Mask(levels).touched(24, 16)
        assert larger.box == (10, 6, 12, 8) and not larger.is_soft


class TestResizing:
    def test_pictures_as_pillow_and_arrays_as_torch(self) -> None:
        picture = Image.fromarray(np.kron(GREY, np.ones((3, 3), np.uint8)))
        picture = read(picture).image()  # nearly black and white levels out of the way
        lanczos = np.asarray(picture.resize((11, 13), Image.Resampling.LANCZOS))
        assert_resized(read(picture), lanczos)
        bilevel = picture.convert("1", dither=Image.Dither.NONE)
        assert_resized(read(bilevel), np.asarray(bilevel.resize((11, 13)).convert("L")))
        palette = picture.convert("P")
        assert_resized(read(palette), np.asarray(palette.resize((11, 13)).convert("L")))
        array = np.asarray(picture) / np.float32(255)
        nearest = torch.nn.functional.interpolate(torch.from_numpy(array)[None, None], size=(13, 11))
        assert_resized(read(array), 255 * nearest[0, 0].numpy())

    def test_the_same_size_changes_nothing(self) -> None:
        mask = read(PICTURE)
        assert mask.resized(*SIZE) is mask

    @pytest.mark.parametrize("form", [PICTURE, PICTURE.convert("1"), HARD])
    def test_filling_keeps_the_aspect_and_the_middle(self, form: Any) -> None:
        filled = read(form).resized(80, 80, "fill").hardened()
        assert filled.size == (80, 80)
        middle = filled.cropped((0, 10, 80, 70))
        np.testing.assert_array_equal(middle.levels, read(form).resized(80, 60).hardened().levels)

    def test_a_size_of_nothing(self) -> None:
        with pytest.raises(InputError, match="0x5"):
            read(PICTURE).resized(0, 5)


def assert_resized(mask: Mask, levels: np.ndarray) -> None:
    expected = np.where(levels < 12.75, 0, np.where(levels > 242.25, 255, levels)) / 255
    np.testing.assert_allclose(mask.resized(11, 13).levels, expected, atol=1e-6)


class TestCropRegion:
    def test_by_hand(self) -> None:
        levels = np.zeros((60, 100), np.float32)
        levels[20:40, 40:50] = 1
        mask = Mask(levels)
        assert mask.crop_region(512, 512) == (35, 20, 55, 40)
        assert mask.crop_region(512, 512, pad=5) == (30, 15, 60, 45)
        assert mask.crop_region(1024, 512, pad=5) == (15, 15, 75, 45)
        assert mask.crop_region(512, 512, pad=1000) == (0, 0, 100, 60)
        corner = np.zeros((60, 100), np.float32)
        corner[:2, 90:] = 0.01
        assert Mask(corner).crop_region(512, 512) == (90, 0, 100, 10)

    @pytest.mark.parametrize(
        ("arguments", "parameter"),
        [((0, 64), "width"), ((64, 0), "height"), ((64, 64, -1), "pad")],
    )
    def test_sizes_that_are_refused(self, arguments: tuple[int, ...], parameter: str) -> None:
        with pytest.raises(InputError, match="width, height and pad are") as caught:
            read(PICTURE).crop_region(*arguments)
        assert caught.value.parameter == parameter

    def test_an_empty_mask_has_none(self) -> None:
        with pytest.raises(InputError, match=r"entirely black.*invert"):
            read(Image.new("L", (8, 8))).crop_region(64, 64)
