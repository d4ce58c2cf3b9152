from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retouch.errors import InputError, NumericsError
from retouch.images.processor import VaeImageProcessor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
MASKS = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)


def test_config_is_read_as_attributes_and_as_a_mapping() -> None:
    config = VaeImageProcessor(vae_scale_factor=4, do_convert_rgb=True).config
    assert config.vae_scale_factor == config["vae_scale_factor"] == 4
    assert config.do_convert_rgb and config.do_resize and config.resample == "lanczos"
    with pytest.raises(AttributeError):
        config.vae_scale_factor = 8


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"do_convert_rgb": True, "do_convert_grayscale": True}, "both True"),
        ({"resample": "sinc"}, "resample is 'sinc'.*lanczos"),
    ],
)
def test_contradicting_settings(settings: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        VaeImageProcessor(**settings)


def test_deep_and_palette_pictures_are_read_by_value() -> None:
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    plain, converting = (
        VaeImageProcessor(do_normalize=False),
        VaeImageProcessor(do_normalize=False, do_convert_rgb=True),
    )
    for processor in plain, converting:
        pixels = processor.preprocess(Image.fromarray(grey))
        assert np.abs(pixels[0, 0].numpy() - grey / 65535).max() <= 0.51 / 255
    assert plain.preprocess(Image.fromarray(grey)).shape == (1, 1, 8, 8)  # grey as it came, like "L"
    hole = MASKS.preprocess(Image.fromarray(grey))
    np.testing.assert_array_equal(hole[0, 0].numpy(), grey >= 32768)
    palette = PICTURE.quantize(16)
    ours = VaeImageProcessor().preprocess(palette)
    assert ours.equal(VaeImageProcessor().preprocess(palette.convert("RGB")))


def test_bytes_are_fractions() -> None:
    expected = VaeImageProcessor().preprocess(PICTURE)
    for array in np.asarray(PICTURE), torch.from_numpy(np.array(PICTURE)).movedim(-1, 0):
        assert VaeImageProcessor().preprocess(array).equal(expected)
    dark = VaeImageProcessor(do_normalize=False).preprocess(np.ones((8, 8, 3), np.uint8))
    assert dark.max() < 0.004  # a photo of level 1 is dark; only a mask of level 1 holds flags
    assert MASKS.preprocess(np.ones((8, 8), np.uint8)).min() == 1


def test_control_values_below_zero_are_kept_where_nothing_is_normalised() -> None:
    condition = torch.rand(1, 3, 16, 16)
    condition[..., :8] = -1
    processor = VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    assert processor.preprocess(condition).equal(condition)


def test_normalised_input_is_said_to_be_so() -> None:
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with pytest.warns(UserWarning, match=r"taken as already normalised.*image / 2 \+ 0.5") as caught:
        assert VaeImageProcessor().preprocess(pixels).equal(pixels)
    assert caught[0].filename == __file__


def soft_alpha() -> Image.Image:
    clear = PICTURE.copy()
    clear.putalpha(200)
    return clear


def test_transparency() -> None:
    with pytest.raises(InputError, match=r"image has an alpha channel.*alpha_composite"):
        VaeImageProcessor().preprocess(soft_alpha())
    with pytest.raises(InputError, match=r"mask_image has an alpha channel.*getchannel"):
        MASKS.preprocess(soft_alpha())
    asked_for = VaeImageProcessor(do_convert_rgb=True).preprocess(soft_alpha())
    assert asked_for.equal(VaeImageProcessor().preprocess(PICTURE))


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        ([], {}, "empty list"),
        ("photo.png", {}, "of type str.*load_image"),
        ([PICTURE, np.zeros((24, 32, 3))], {}, "mixed"),
        ([PICTURE, PICTURE.convert("L")], {}, "different shapes"),
        (Image.new("RGB", (0, 8)), {}, "no pixels"),
        (Image.new("RGB", (5, 5)), {}, "resize to is 0x0"),
        (PICTURE, {"height": 7, "width": 64}, "resize to is 64x0"),
        (PICTURE, {"resize_mode": "squash"}, "resize_mode is 'squash'"),
        (PICTURE, {"crops_coords": (10, 10, 5, 20)}, "crops_coords is"),
        (np.zeros((16, 16, 3)), {"resize_mode": "fill"}, "PIL pictures only"),
        (torch.zeros(1, 3, 16, 16), {"crops_coords": (0, 0, 8, 8)}, "PIL pictures only"),
        (np.full((16, 16, 3), np.nan), {}, "NaN"),
        (torch.full((1, 3, 16, 16), torch.inf), {}, "infinite"),
        (np.full((16, 16, 3), 200.0), {}, "from 200 to 200.*Divide them by 255"),
        (torch.full((1, 3, 16, 16), -1.5), {}, "from -1.5"),
        (np.zeros((16, 16, 4)), {}, "4 channels"),
        (np.zeros((3, 16, 16)), {}, "16 channels.*moveaxis"),
        (torch.zeros(16, 16, 3), {}, "16 channels.*movedim"),
        (torch.zeros(1, 9, 16, 16), {}, "9 channels"),
        (np.zeros((0, 16, 3)), {}, "shape"),
        ([np.zeros((16, 16, 3)), np.zeros((16, 24, 3))], {}, "different shapes"),
    ],
)
def test_preprocess_refuses(image: object, options: dict, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        VaeImageProcessor().preprocess(image, **options)


def test_masks_run_from_zero() -> None:
    with pytest.raises(InputError, match="mask_image has values from -1 to 1"):
        MASKS.preprocess(torch.tensor([[-1.0, 1.0]]))
    with pytest.raises(InputError, match="mask_image has values from -1"):
        VaeImageProcessor(do_normalize=False, do_binarize=True).preprocess(-torch.ones(1, 1, 8, 8))


def test_postprocess_refuses() -> None:
    processor, pixels = VaeImageProcessor(), torch.zeros(2, 3, 4, 4)
    with pytest.raises(InputError, match=r"output_type is 'jpeg'.*pil, np, pt, latent"):
        processor.postprocess(pixels, "jpeg")
    with pytest.raises(InputError, match="a numpy array of float64"):
        processor.postprocess(np.zeros((2, 3, 4, 4)))
    with pytest.raises(InputError, match=r"shape \(3, 4, 4\)"):
        processor.postprocess(pixels[0])
    with pytest.raises(InputError, match="1 entries but there are 2"):
        processor.postprocess(pixels, "pil", [True])
    for broken in torch.nan, torch.inf:
        pixels[1, 0, 0, 0] = broken
        with pytest.raises(NumericsError, match="NaN or infinite"):
            processor.postprocess(pixels)
    assert processor.postprocess(pixels, "latent") is pixels


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), "uint8.*fromarray"),
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.full((4, 4, 3), 1.1), "outside of 0 to 1"),
        (np.full((4, 4, 3), -0.1), "outside of 0 to 1"),
        (np.full((4, 4, 3), np.nan), "outside of 0 to 1"),
        (np.zeros((3, 4, 5)), "5 channels"),
        (np.zeros((0, 4, 4, 3)), "shape"),
        ([0.5], "of type list"),
    ],
)
def test_numpy_to_pil_refuses(images: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        VaeImageProcessor.numpy_to_pil(images)


def test_resize_of_arrays_refuses_modes_for_pictures() -> None:
    with pytest.raises(InputError, match="resize_mode is 'fill'"):
        VaeImageProcessor().resize(torch.zeros(1, 3, 8, 8), 16, 16, resize_mode="fill")
    with pytest.raises(InputError, match="resize to is 16x0"):
        VaeImageProcessor().resize(torch.zeros(1, 3, 8, 8), 0, 16)
