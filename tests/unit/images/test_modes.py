from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from retouch.errors import InputError
from retouch.images.modes import is_transparent, luminance, plain_rgb

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8))


def half_clear(mode: str) -> Image.Image:
    picture = COLOURS.convert("RGBA")
    picture.putpixel((2, 3), (9, 9, 9, 254))
    if mode == "P":
        palette = COLOURS.quantize(4)
        palette.info["transparency"] = palette.getpixel((0, 0))
        return palette
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_pictures_become_rgb(mode: str) -> None:
    picture = COLOURS.convert(mode)
    assert plain_rgb(picture).tobytes() == picture.convert("RGB").tobytes()
    assert luminance(picture).tobytes() == picture.convert("L").tobytes()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = np.asarray(plain_rgb(Image.fromarray(levels)))[..., 0]
    assert np.abs(grey - levels / 257.0).max() <= 0.5
    np.testing.assert_array_equal(np.asarray(luminance(Image.fromarray(levels))), grey)


def test_scale_of_modes_that_do_not_say_it() -> None:
    def levels(values: list[float], dtype: type) -> list[int]:
        return np.asarray(luminance(Image.fromarray(np.array([values], dtype)))).tolist()[0]

    assert levels([0, 100, 255], np.int32) == [0, 100, 255]
    assert levels([0, 25700, 65535], np.int32) == [0, 100, 255]
    assert levels([0, 0.2, 1], np.float32) == [0, 51, 255]
    assert levels([0, 51, 255], np.float32) == [0, 51, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa"])
def test_transparent_pictures_are_refused(mode: str) -> None:
    picture = half_clear(mode)
    assert is_transparent(picture)
    with pytest.raises(InputError, match=r"init has an alpha.*alpha_composite.*convert\(\"RGB\"\)"):
        plain_rgb(picture, "init")
    with pytest.raises(InputError, match=r"mask has an alpha.*getchannel\(\"A\"\).*convert\(\"L\"\)"):
        luminance(picture, "mask")


def test_the_advice_of_the_messages_works() -> None:
    for mode in "RGBA", "LA", "P":
        picture = half_clear(mode)
        assert plain_rgb(picture.convert("RGB")).mode == "RGB"
        assert luminance(picture.convert("L")).mode == "L"
        assert luminance(picture.convert("RGBA").getchannel("A")).getextrema()[1] == 255


@pytest.mark.parametrize("values", [[0, np.nan], [0, np.inf], [-1, 5], [0, 300]])
def test_values_that_no_scale_explains(values: list[float]) -> None:
    with pytest.raises(InputError, match='mode "F" and values'):
        plain_rgb(Image.fromarray(np.array([values], np.float32)))


def test_what_is_no_picture() -> None:
    with pytest.raises(InputError, match="image is a ndarray"):
        plain_rgb(np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match="image is 0x4, it has no pixels"):
        plain_rgb(Image.new("RGB", (0, 4)))
    with pytest.raises(InputError, match='mode "La", which Pillow cannot turn into "RGB"'):
        plain_rgb(Image.new("LA", (2, 2), (7, 255)).convert("La"))
