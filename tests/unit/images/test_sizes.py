from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retouch.errors import InputError
from retouch.images.sizes import crop_to, fill_pixels, pad_pixels, resize_picture


def test_padding_by_hand() -> None:
    pixels = torch.tensor([[1, 2, 3], [4, 5, 6]])[None, None]
    padded = pad_pixels(pixels, 4)
    assert padded[0, 0].tolist() == [[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]]
    assert crop_to(padded, 2, 3).equal(pixels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.bool])
def test_padding_keeps_the_dtype(dtype: torch.dtype) -> None:
    pixels = torch.ones(2, 3, 9, 16, dtype=dtype)
    assert pad_pixels(pixels, 8).dtype == dtype
    assert pad_pixels(pixels, 8).shape == (2, 3, 16, 16)


def test_fill_continues_the_picture_and_crop_loses_its_sides() -> None:
    columns = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    wide = Image.fromarray(columns)  # 40x20, brighter to the right
    filled = np.asarray(resize_picture(wide, 40, 40, "fill"))
    assert filled.shape == (40, 40, 3)
    np.testing.assert_array_equal(filled[10:30], columns)
    np.testing.assert_array_equal(filled[:10], columns[:10])
    np.testing.assert_array_equal(filled[30:], columns[:10])
    np.testing.assert_array_equal(np.asarray(resize_picture(wide, 20, 20, "crop")), columns[:, 10:30])


@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
def test_extreme_shapes(mode: str) -> None:
    for size in (1, 2000), (2000, 1), (1, 1):
        assert resize_picture(Image.new("RGB", size), 16, 8, mode).size == (16, 8)


def test_refusals() -> None:
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match=r"resize_mode is 'stretch'.*default, fill, crop"):
        resize_picture(picture, 8, 8, "stretch")
    with pytest.raises(InputError, match="size to resize to is 0x8"):
        resize_picture(picture, 0, 8)
    with pytest.raises(InputError, match="no pixels"):
        resize_picture(Image.new("RGB", (8, 0)), 8, 8)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((30, 20), (60, 60)), ((20, 30), (60, 60)), ((24, 24), (48, 96)), ((7, 7), (21, 21))],
)
def test_tensors_are_filled_as_pictures_are(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (given[1], given[0], 3), dtype=np.uint8)
    expected = resize_picture(Image.fromarray(levels), *wanted, "fill", resample="nearest")
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None].float()
    filled = fill_pixels(pixels, *wanted)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(filled, np.asarray(expected))


def test_filling_leaves_no_gap_at_odd_margins() -> None:
    filled = fill_pixels(torch.ones(1, 1, 5, 100), 33, 64)
    assert filled.shape == (1, 1, 64, 33) and (filled == 1).all()
