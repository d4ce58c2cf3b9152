from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retouch.errors import InputError
from retouch.images.masks import blur, crop_region, harden, is_empty, mask_values

GREY = np.array([[0, 51, 102, 255, 3], [128, 127, 1, 254, 4], [255, 0, 0, 7, 5]], np.uint8)
VALUES = torch.from_numpy(GREY.astype(np.float32) / 255)


def assert_values(mask: object, expected: torch.Tensor = VALUES, tolerance: float = 0) -> None:
    values = mask_values(mask)
    assert values.is_floating_point()
    torch.testing.assert_close(
        values.float(), expected.reshape(-1, 1, *expected.shape[-2:]), rtol=0, atol=tolerance
    )


def test_pictures_of_every_mode() -> None:
    grey = Image.fromarray(GREY)
    for mode in "L", "LA", "RGB", "RGBA", "P":
        assert_values(grey.convert(mode))
    assert_values(grey.point(lambda level: 255 * (level > 100)).convert("1"), (VALUES > 100 / 255).float())
    assert_values(Image.fromarray(GREY.astype(np.uint16) * 257))
    assert_values(Image.fromarray(GREY.astype(np.int32) * 257))
    assert_values(Image.fromarray(GREY.astype(np.int32)))
    assert_values(Image.fromarray(GREY.astype(np.float32)))
    assert_values(Image.fromarray(VALUES.numpy()), tolerance=1e-7)


def test_sixteen_bits_keep_their_levels() -> None:
    levels = np.array([[0, 1, 32767, 32768, 65535]], np.uint16)
    expected = torch.from_numpy(levels.astype(np.float64) / 65535).float()
    assert_values(Image.fromarray(levels), expected)
    assert_values(levels, expected, 1e-7)


def test_colour_counts_by_luminance() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    expected = torch.from_numpy(np.asarray(Image.fromarray(colours).convert("L")).astype(np.float32) / 255)
    assert_values(Image.fromarray(colours), expected)
    half_a_level = 0.51 / 255
    assert_values(colours, expected, half_a_level)
    assert_values((colours / 255).astype(np.float32), expected, half_a_level)
    assert_values(torch.from_numpy(colours / 255).movedim(-1, 0)[None], expected, half_a_level)
    assert mask_values(np.ones((2, 2, 3), np.float32)).eq(1).all()  # white is exactly 1


def test_arrays_and_tensors_of_every_shape() -> None:
    array, tensor = VALUES.numpy(), VALUES
    for single in (
        *(array, array[..., None], array[None], array[None, ..., None]),
        *(tensor, tensor[None], tensor[None, None]),
    ):
        assert_values(single)
    two = torch.stack([VALUES, 1 - VALUES])
    for pair in (
        *(two, two[:, None], two.numpy(), two.numpy()[..., None]),
        *([array, 1 - array], [tensor[None], 1 - tensor], (Image.fromarray(GREY), 1 - array)),
    ):
        assert_values(pair, two)
    three = torch.stack([VALUES, 1 - VALUES, VALUES / 2])
    assert_values(three, three)  # a tensor's first dimension is the batch, not the colour


def test_every_dtype() -> None:
    hard = VALUES > 0.4
    assert_values(GREY)
    assert_values(GREY.astype(np.int64))
    assert_values(GREY.astype(np.uint16) * 257, tolerance=1e-7)
    assert_values(GREY.astype(">i4"))
    assert_values(torch.from_numpy(GREY))
    for flags in hard, hard.numpy(), hard.to(torch.uint8), hard.numpy().astype(np.int64), hard.double():
        assert_values(flags, hard.float())
    assert_values(np.zeros((2, 2), np.uint8), torch.zeros(2, 2))
    for dtype in torch.float16, torch.float32, torch.float64:
        assert mask_values(VALUES.to(dtype)).dtype == dtype
    assert mask_values(VALUES.numpy().astype(np.float64)).dtype == torch.float64


def test_views_and_locked_arrays_are_read_without_a_warning() -> None:
    locked = VALUES.numpy().copy()
    locked.flags.writeable = False
    assert_values(locked)
    assert_values(locked[::-1, ::-1], VALUES.flip(0, 1))


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
        ([np.zeros((4, 4)), np.zeros((4, 5))], "different shapes"),
        ("mask.png", "of type str.*load_image"),
        (None, "NoneType"),
        (Image.new("L", (0, 3)), "no pixels"),
        (Image.new("F", (0, 3)), "no pixels"),
    ],
)
def test_wrong_masks_are_refused(mask: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"^my_mask .*{reason}"):
        mask_values(mask, "my_mask")


def test_transparent_masks_are_ambiguous() -> None:
    mask = Image.fromarray(GREY).convert("LA")
    mask.putpixel((0, 0), (0, 0))
    with pytest.raises(InputError, match="by its brightness or by its alpha"):
        mask_values(mask)
    assert_values(mask.convert("L"))
    assert mask_values(mask.getchannel("A"))[0, 0, 0, :2].tolist() == [0, 1]


def test_harden_and_is_empty() -> None:
    values = torch.tensor([0, 0.4999, 0.5, 1], dtype=torch.float64)
    hard = harden(values)
    assert hard.tolist() == [0, 0, 1, 1] and hard.dtype == torch.float64
    assert values[1] == 0.4999
    assert is_empty(torch.zeros(1, 1, 3, 3)) and not is_empty(torch.tensor([0, 1e-4]))


def test_blur_softens_the_edge_of_any_mode() -> None:
    hard = Image.new("L", (40, 40))
    hard.paste(255, (10, 10, 30, 30))
    expected = np.asarray(blur(hard, 3))
    assert 0 < expected[10, 20] < 255 and expected[20, 20] == 255 and expected[0, 0] == 0
    for mode in "1", "P", "RGB", "I", "F":
        np.testing.assert_array_equal(np.asarray(blur(hard.convert(mode), 3).convert("L")), expected)
    assert blur(hard, 0).tobytes() == hard.tobytes()


@pytest.mark.parametrize("radius", [-1, float("nan"), float("inf")])
def test_blur_refuses(radius: float) -> None:
    with pytest.raises(InputError, match="blur_factor is"):
        blur(Image.new("L", (4, 4)), radius)


def test_crop_region_by_hand() -> None:
    mask = Image.new("L", (100, 60))
    mask.paste(255, (40, 20, 50, 40))
    assert crop_region(mask, 512, 512) == (35, 20, 55, 40)
    assert crop_region(mask, 512, 512, pad=5) == (30, 15, 60, 45)
    assert crop_region(mask, 1024, 512, pad=5) == (15, 15, 75, 45)
    assert crop_region(mask, 512, 512, pad=1000) == (0, 0, 100, 60)
    corner = Image.new("L", (100, 60))
    corner.paste(3, (90, 0, 100, 2))
    assert crop_region(corner, 512, 512) == (90, 0, 100, 10)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((Image.new("L", (8, 8)), 64, 64), "entirely black.*invert"),
        ((Image.new("L", (8, 8), 255), 0, 64), "width, height and pad are 0, 64 and 0"),
        ((Image.new("L", (8, 8), 255), 64, 64, -1), "pad"),
        ((np.ones((8, 8)), 64, 64), "ndarray"),
    ],
)
def test_crop_region_refuses(arguments: tuple, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        crop_region(*arguments)
