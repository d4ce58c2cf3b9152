from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from retouch.errors import InputError
from retouch.images.overlay import apply_overlay

RANDOM = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_hard_mask_by_hand() -> None:
    original, painted = noise(12, 10), noise(12, 10)
    hole = RANDOM.random((10, 12)) > 0.5
    result = apply_overlay(Image.fromarray(hole), original, painted)
    np.testing.assert_array_equal(
        np.asarray(result), np.where(hole[..., None], np.asarray(painted), np.asarray(original))
    )


def test_sixteen_bit_mask_is_not_clipped() -> None:
    original, painted = Image.new("RGB", (2, 1), (0, 0, 0)), Image.new("RGB", (2, 1), (200, 200, 200))
    mask = Image.fromarray(np.array([[300, 65535]], np.uint16))
    result = apply_overlay(mask, original, painted)
    assert result.getpixel((0, 0))[0] < 3 and result.getpixel((1, 0))[0] == 200


def test_crop_is_scaled_back_to_its_place() -> None:
    original, mask = Image.new("RGB", (20, 20), (9, 9, 9)), Image.new("L", (20, 20))
    mask.paste(255, (6, 6, 10, 10))
    result = apply_overlay(mask, original, Image.new("RGB", (64, 64), (200, 0, 0)), (4, 4, 12, 12))
    assert result.getpixel((6, 6)) == result.getpixel((9, 9)) == (200, 0, 0)
    assert result.getpixel((5, 5)) == result.getpixel((10, 10)) == (9, 9, 9)


def test_sizes_must_match() -> None:
    picture, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))
    with pytest.raises(InputError, match=r"mask is 8x9 but init_image is 8x8\. They must match\."):
        apply_overlay(other, picture, picture)
    with pytest.raises(InputError, match=r"image is 8x9 .*crop_coords"):
        apply_overlay(picture, picture, other)
    with pytest.raises(InputError, match="resize to is 0x4"):
        apply_overlay(picture, picture, other, (4, 0, 4, 4))
    with pytest.raises(InputError, match="init_image is a ndarray"):
        apply_overlay(picture, np.zeros((8, 8, 3)), picture)
