"""Our image functions compared with diffusers': the same bytes from pictures, the same floats from arrays."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as Reference
from diffusers.utils import load_image as reference_load_image, make_image_grid as reference_make_image_grid
from PIL import Image

from retouch.images.processor import VaeImageProcessor
from retouch.utils import load_image, make_image_grid

PHOTOS = Path(__file__).parents[2] / "../shared/pictures"
IMAGE = {}
MASK = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
SOFT_MASK = {"do_normalize": False, "do_convert_grayscale": True}
RGB = {"do_convert_rgb": True}
CONTROL = {"do_convert_rgb": True, "do_normalize": False}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Return noise over blobs, with hard edges for the filters and every level for the rounding."""
    coarse = Image.fromarray((noise(5, 4, 4, seed=seed) * 255).astype(np.uint8)).resize((width, height))
    fine = (noise(height, width, 4, seed=seed + 1) * 80 - 40).astype(np.int16)
    rgba = Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        return rgba.convert(mode)
    return rgba.convert("RGB").convert(mode)


def mask(width: int, height: int, mode: str = "L") -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[height // 3 : height // 2, width // 4 : width // 2] = 255
    return Image.fromarray(values).convert(mode)


def both(settings: dict, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = Reference(**settings).preprocess(*copy.deepcopy(args), **kwargs)
    return VaeImageProcessor(**settings).preprocess(*args, **kwargs), expected


def assert_same(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.dtype == reference.dtype
    torch.testing.assert_close(ours, reference, rtol=0, atol=0)


def assert_same_picture(ours: Image.Image, reference: Image.Image) -> None:
    assert (ours.mode, ours.size) == (reference.mode, reference.size)
    assert ours.tobytes() == reference.tobytes()


@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (33, 90), (200, 16), (8, 8)])
@pytest.mark.parametrize("settings", [IMAGE, MASK, SOFT_MASK, RGB], ids=["image", "mask", "soft", "rgb"])
def test_preprocess_over_sizes_and_resize_modes(
    settings: dict, size: tuple[int, int], resize_mode: str
) -> None:
    for height, width in [(None, None), (64, 64), (48, 80), (40, 44), (128, 24)]:
        assert_same(*both(settings, picture("RGB", *size), height, width, resize_mode=resize_mode))


@pytest.mark.parametrize(
    ("settings", "modes"),
    [
        (IMAGE, ["L", "RGB"]),
        (MASK, ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"]),
        (RGB, ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"]),
        (CONTROL, ["L", "RGBA"]),
    ],
    ids=["image", "mask", "rgb", "control"],
)
def test_preprocess_over_modes(settings: dict, modes: list[str]) -> None:
    for mode in modes:
        given = picture(mode, 45, 37)
        assert_same(*both(settings, given))
        assert_same(*both(settings, given, 56, 40))
        assert_same(*both(settings, given, 56, 40, crops_coords=(3, 5, 40, 30)))


def test_opaque_alpha_counts_as_none() -> None:
    grey, rgb = picture("L", 40, 40), picture("RGB", 40, 40)
    for settings, opaque, plain in [(MASK, "LA", grey), (MASK, "RGBA", rgb), (IMAGE, "RGBA", rgb)]:
        ours = VaeImageProcessor(**settings).preprocess(plain.convert(opaque))
        torch.testing.assert_close(ours, Reference(**settings).preprocess(plain), rtol=0, atol=0)


@pytest.mark.parametrize("resample", ["nearest", "linear", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
def test_preprocess_over_filters(resample: str, resize_mode: str) -> None:
    settings = {"resample": resample, "vae_scale_factor": 4, "reducing_gap": 1}
    assert_same(*both(settings, picture("RGB", 131, 77), 44, 60, resize_mode=resize_mode))


@pytest.mark.parametrize("crop", [(0, 0, 64, 48), (7, 3, 50, 41), (20, 20, 28, 60), (-5, -8, 70, 60)])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
def test_preprocess_with_crops(crop: tuple[int, int, int, int], resize_mode: str) -> None:
    pictures = [picture("RGB", 64, 48, seed) for seed in (1, 2)]
    for settings in IMAGE, MASK:
        assert_same(*both(settings, pictures, 32, 40, resize_mode=resize_mode, crops_coords=crop))


@pytest.mark.parametrize("do_resize", [True, False])
def test_preprocess_arrays_and_tensors(do_resize: bool) -> None:
    colour, grey = noise(2, 24, 40, 3).astype(np.float32), noise(2, 24, 40).astype(np.float32)
    pixels = torch.from_numpy(colour).movedim(-1, 1)
    settings = {"do_resize": do_resize}
    for given in (
        colour,
        colour[0],
        list(colour),
        [colour[:1], colour[1:]],
        colour.astype(np.float64),
        grey[0],
        [grey[0], grey[1]],
        grey[0][..., None],
        pixels,
        pixels[0],
        list(pixels),
        [pixels[:1], pixels[1:]],
        pixels.double(),
        pixels[:, :1],
        pixels * 0.999 - 0.5,  # values below zero count as normalised already
    ):
        size = (16, 32) if do_resize else (None, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert_same(*both(settings, given, *size))


@pytest.mark.parametrize("settings", [MASK, SOFT_MASK], ids=["mask", "soft"])
def test_preprocess_mask_arrays_and_tensors(settings: dict) -> None:
    grey = noise(2, 24, 40).astype(np.float32)
    values = torch.from_numpy(grey)
    for given in (
        grey[0],
        grey,
        grey[0][..., None],
        grey[..., None],
        [grey[0], grey[1]],
        [grey[0][..., None], grey[1][..., None]],
        values[0],
        values[:1],
        values,
        values[:, None],
        [values[0], values[1]],
        [values[:1], values[1:]],
        [values[:1, None], values[1:, None]],
    ):
        before = copy.deepcopy(given)
        assert_same(*both(settings, given, 16, 32))
        for left, right in zip(before, given, strict=True):
            assert (left == right).all(), "the caller's own mask was changed"


def test_latents_pass_untouched() -> None:
    latents = torch.randn(2, 4, 6, 5)
    ours, reference = both(IMAGE, latents, 64, 64)
    assert_same(ours, latents)
    assert_same(ours, reference)


def test_flags_as_integers_mean_a_hard_mask_as_in_the_reference() -> None:
    flags = (noise(16, 24) > 0.6).astype(np.uint8)
    expected = Reference(**MASK).preprocess(flags.astype(np.float32))
    for given in flags, flags.astype(bool), flags.astype(np.int64), flags * 255, torch.from_numpy(flags):
        torch.testing.assert_close(VaeImageProcessor(**MASK).preprocess(given), expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_postprocess(channels: int) -> None:
    pixels = torch.randn(3, channels, 9, 14)
    for settings in IMAGE, {"do_normalize": False}:
        ours, reference = VaeImageProcessor(**settings), Reference(**settings)
        shown = pixels if settings is IMAGE else pixels.clamp(0, 1)
        for rows in None, [True, True, True]:
            for ours_picture, its in zip(
                ours.postprocess(shown, do_denormalize=rows),
                reference.postprocess(shown, do_denormalize=rows),
                strict=True,
            ):
                assert_same_picture(ours_picture, its)
        for rows in None, [True, False, True]:
            np.testing.assert_array_equal(
                ours.postprocess(shown, "np", rows), reference.postprocess(shown, "np", rows)
            )
            assert_same(ours.postprocess(shown, "pt", rows), reference.postprocess(shown, "pt", rows))
        assert ours.postprocess(shown, "latent") is shown


def test_small_methods() -> None:
    array, pixels = noise(2, 5, 7, 3), torch.rand(2, 3, 5, 7)
    ours, its = VaeImageProcessor(), Reference()
    assert_same(ours.normalize(pixels), its.normalize(pixels))
    assert_same(ours.denormalize(pixels * 3 - 1), its.denormalize(pixels * 3 - 1))
    assert_same(ours.binarize(pixels), its.binarize(pixels.clone()))
    assert_same(ours.numpy_to_pt(array), its.numpy_to_pt(array))
    assert_same(ours.numpy_to_pt(array[..., 0]), its.numpy_to_pt(array[..., 0]))
    np.testing.assert_array_equal(ours.pt_to_numpy(pixels.half()), its.pt_to_numpy(pixels.half()))
    for given in array, array[0], array[..., :1]:
        for left, right in zip(ours.numpy_to_pil(given), its.numpy_to_pil(given), strict=True):
            assert_same_picture(left, right)
    pictures = [picture("RGB", 6, 4), picture("RGB", 6, 4, 1)]
    for given in pictures, pictures[0], picture("L", 6, 4), picture("RGBA", 6, 4):
        np.testing.assert_array_equal(ours.pil_to_numpy(given), its.pil_to_numpy(given))
    for mode in "1", "L", "P", "LA", "RGBA", "CMYK":
        assert_same_picture(ours.convert_to_rgb(picture(mode, 6, 4)), its.convert_to_rgb(picture(mode, 6, 4)))
        assert_same_picture(
            ours.convert_to_grayscale(picture(mode, 6, 4)), its.convert_to_grayscale(picture(mode, 6, 4))
        )
    assert_same(ours.resize(pixels, 8, 9), its.resize(pixels, 8, 9))
    np.testing.assert_array_equal(ours.resize(array, 8, 9), its.resize(array, 8, 9))
    for given in picture("RGB", 30, 41), array[:, None], pixels:
        for size in (None, None), (17, None), (None, 30), (24, 31):
            assert ours.get_default_height_width(given, *size) == its.get_default_height_width(given, *size)


@pytest.mark.parametrize("factor", [0, 0.5, 1, 4, 33])
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_blur(mode: str, factor: float) -> None:
    given = picture(mode, 50, 33)
    assert_same_picture(VaeImageProcessor.blur(given, factor), Reference.blur(given, factor))
    assert_same_picture(VaeImageProcessor.blur(given), Reference.blur(given))


def test_crop_region_over_a_grid() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        width, height = (int(side) for side in random.integers(2, 120, 2))
        values = np.zeros((height, width), np.uint8)
        left, top = int(random.integers(width)), int(random.integers(height))
        right, bottom = int(random.integers(left, width)) + 1, int(random.integers(top, height)) + 1
        values[top:bottom, left:right] = random.integers(1, 256)
        target = [int(side) for side in random.choice([8, 64, 96, 512, 520, 777], 2)]
        pad = int(random.choice([0, 1, 7, 32, 200]))
        given = Image.fromarray(values)
        ours = VaeImageProcessor.get_crop_region(given, *target, pad=pad)
        assert ours == Reference.get_crop_region(given, *target, pad=pad), (values.shape, target, pad)
        assert all(isinstance(side, int) for side in ours)


@pytest.mark.parametrize("mask_mode", ["L", "RGB", "1", "P"])
@pytest.mark.parametrize("crop", [None, (10, 8, 40, 30), (0, 0, 60, 44), (31, 2, 60, 40)])
@pytest.mark.parametrize("soft", [False, True])
def test_apply_overlay(mask_mode: str, crop: tuple[int, int, int, int] | None, soft: bool) -> None:
    hole = VaeImageProcessor.blur(mask(60, 44), 5) if soft else mask(60, 44)
    hole = hole.convert(mask_mode)
    painted = picture("RGB", *((60, 44) if crop is None else (48, 64)), seed=5)
    for resample in "lanczos", "bilinear":
        ours, its = VaeImageProcessor(resample=resample), Reference(resample=resample)
        for mode in "RGB", "L", "RGBA":
            original = picture(mode, 60, 44, seed=3)
            assert_same_picture(
                ours.apply_overlay(hole, original, painted, crop),
                its.apply_overlay(hole, original, painted, crop),
            )


def test_apply_overlay_over_random_soft_masks() -> None:
    """Every level of mask, original and result is rounded as the reference's premultiplied pixels are."""
    hole, original, painted = (
        Image.fromarray((noise(*shape, seed=seed) * 255.99).astype(np.uint8))
        for seed, shape in enumerate([(200, 200), (200, 200, 3), (200, 200, 3)])
    )
    assert_same_picture(
        VaeImageProcessor().apply_overlay(hole, original, painted),
        Reference().apply_overlay(hole, original, painted),
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_load_image_over_modes(mode: str, tmp_path: Path) -> None:
    given = picture(mode, 20, 11)
    assert_same_picture(load_image(given), reference_load_image(given))
    assert_same_picture(
        load_image(given, convert_method=lambda image: image.convert("L")),
        reference_load_image(given, convert_method=lambda image: image.convert("L")),
    )
    path = str(tmp_path / ("picture.tif" if mode in ("CMYK", "YCbCr") else "picture.png"))
    if mode != "HSV":
        given.save(path)
        assert_same_picture(load_image(path), reference_load_image(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_over_orientations(orientation: int, tmp_path: Path) -> None:
    path = str(tmp_path / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture("RGB", 24, 16).save(path, exif=exif)
    ours = load_image(path)
    assert_same_picture(ours, reference_load_image(path))
    assert ours.size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.parametrize("resize", [None, 13])
def test_make_image_grid(resize: int | None) -> None:
    given = [picture(mode, 20, 11, seed) for seed, mode in enumerate(["RGB", "L", "1", "RGBA", "P", "RGB"])]
    for rows, cols in (2, 3), (3, 2), (1, 6), (6, 1):
        assert_same_picture(
            make_image_grid(given, rows, cols, resize), reference_make_image_grid(given, rows, cols, resize)
        )
    uneven = [picture("RGB", 20, 11), picture("RGB", 30, 31)]
    assert_same_picture(
        make_image_grid(uneven, 1, 2, resize), reference_make_image_grid(uneven, 1, 2, resize)
    )


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real pictures beside the repository")
def test_on_real_pictures() -> None:
    photos = sorted(path for path in PHOTOS.glob("*.png") if not path.stem.endswith("_mask"))
    assert photos
    for path in photos:
        photo, hole = str(path), str(path.with_name(f"{path.stem}_mask.png"))
        assert_same_picture(load_image(photo), reference_load_image(photo))
        photo, hole = load_image(photo), load_image(hole)
        region = VaeImageProcessor.get_crop_region(hole, 512, 384, pad=32)
        assert region == Reference.get_crop_region(hole, 512, 384, pad=32)
        for settings, given in (IMAGE, photo), (MASK, hole), (SOFT_MASK, hole):
            assert_same(*both(settings, given, 256, 320))
            assert_same(*both(settings, given, 384, 512, resize_mode="fill", crops_coords=region))
        soft = VaeImageProcessor.blur(hole, 33)
        assert_same_picture(soft, Reference.blur(hole, 33))
        negative = photo.transpose(Image.Transpose.ROTATE_180)
        for crop in None, region:
            assert_same_picture(
                VaeImageProcessor().apply_overlay(soft, photo, negative, crop),
                Reference().apply_overlay(soft, photo, negative, crop),
            )
