"""The pictures and masks of a call at one working size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pipeline_pairs import mask, photo

from retouch.families.call import Call
from retouch.families.latents import LatentLayout
from retouch.families.pictures import Pictures, arrange
from retouch.images.processor import VaeImageProcessor

PROCESSOR = VaeImageProcessor(vae_scale_factor=8)


def prepared(**arguments: Any) -> Pictures:
    return arrange(Call(prompt="a", **arguments), PROCESSOR, LatentLayout(4), default_size=96)


def test_without_a_picture_the_checkpoints_size() -> None:
    assert (prepared().height, prepared().width) == (96, 96)
    assert (prepared(height=64).height, prepared(height=64).width) == (64, 96)
    assert prepared().count == 1


@pytest.mark.parametrize(("width", "height"), [(64, 48), (61, 43), (9, 9), (3, 100)])
def test_a_picture_has_its_own_size_filled_up(width: int, height: int) -> None:
    found = prepared(image=photo(0, width, height), mask_image=Image.new("L", (width, height), 255))
    filled = (-(-height // 8) * 8, -(-width // 8) * 8)
    assert (found.height, found.width) == filled
    assert found.cut == (None if filled == (height, width) else (height, width))
    (repaint,) = found.masks
    assert found.pixels is not None
    assert found.pixels.shape == (1, 3, *filled) and repaint.levels.shape == filled
    own = torch.from_numpy(np.asarray(photo(0, width, height)) / np.float32(127.5) - 1).movedim(-1, 0)
    assert torch.allclose(found.pixels[0, :, :height, :width], own, atol=1e-6)
    assert torch.equal(
        found.pixels[..., height - 1 :, :],
        found.pixels[..., -1:, :].expand_as(found.pixels[..., height - 1 :, :]),
    )
    # What is filled up is kept: painting there would be work for nothing.
    assert repaint.levels[:height, :width].all() and repaint.levels.sum() == width * height


def test_given_sizes_stretch_picture_and_mask_alike() -> None:
    hole = mask((0, 0, 30, 60), 60, 60)
    found = prepared(image=photo(0, 60, 60), mask_image=hole, height=64, width=128)
    (repaint,) = found.masks
    assert found.cut is None
    assert repaint.levels[:, :64].all() and not repaint.levels[:, 64:].any()


@pytest.mark.parametrize(
    ("value", "mode", "expected"),
    [
        (0.0, "soft", 0.0), (0.04, "soft", 0.0), (0.3, "soft", 0.3), (0.5, "soft", 0.5), (0.97, "soft", 1.0),
        (1.0, "soft", 1.0),
        (0.3, "binary", 0.0), (0.5, "binary", 1.0), (0.97, "binary", 1.0),
    ],
)  # fmt: skip
def test_values_of_a_mask(value: float, mode: str, expected: float) -> None:
    values = np.full((64, 64), value, np.float32)
    values[0, 0] = 0.6  # one grey pixel keeps the mask soft
    found = prepared(image=photo(), mask_image=values, mask_mode=mode)
    assert np.allclose(found.masks[0].levels[1:], expected)
    assert found.is_soft == (mode == "soft")
    assert (found.hard_masks[0].levels[1:] == (expected >= 0.5)).all()


def test_a_mask_that_is_nearly_black_and_white_is_hard() -> None:
    values = np.where(np.asarray(mask()) > 0, 0.96, 0.04).astype(np.float32)
    found = prepared(image=photo(), mask_image=values)
    assert not found.is_soft
    assert np.array_equal(found.masks[0].levels, values > 0.5)


def test_a_crop_is_the_masks_with_its_margin() -> None:
    found = prepared(
        image=photo(0, 150, 110), mask_image=mask((90, 61, 131, 83), 150, 110), padding_mask_crop=8
    )
    ((original, hole, box),) = found.pastes
    assert original.size == hole.size == (150, 110)
    left, top, right, bottom = box
    assert left <= 82 and top <= 53 and right >= 139 and bottom >= 91 and right - left == bottom - top
    assert found.pixels is not None and found.pixels.shape == (1, 3, 96, 96) and found.cut is None


def test_a_hard_mask_of_another_size_stays_hard_in_a_crop() -> None:
    hole = Image.new("L", (75, 55))
    ImageDraw.Draw(hole).ellipse((20, 10, 50, 40), fill=255)
    for given in (hole, hole.convert("1"), hole.convert("P")):
        with pytest.warns(UserWarning, match="scaled to the picture"):
            found = prepared(image=photo(0, 150, 110), mask_image=given, padding_mask_crop=8)
        assert not found.is_soft and not found.pastes[0][1].is_soft
    blurred = hole.resize((25, 19)).resize((75, 55))
    with pytest.warns(UserWarning, match="scaled to the picture"):
        soft = prepared(image=photo(0, 150, 110), mask_image=blurred, padding_mask_crop=8)
    assert soft.is_soft


def test_speckles_of_a_jpeg_do_not_widen_the_crop() -> None:
    clean = mask((90, 61, 131, 83), 150, 110)
    speckled = Image.fromarray(
        np.maximum(np.asarray(clean), np.random.default_rng(0).integers(0, 9, (110, 150), np.uint8))
    )
    boxes = []
    for hole in (clean, speckled, speckled.convert("RGB")):
        found = prepared(image=photo(0, 150, 110), mask_image=hole, padding_mask_crop=8)
        boxes.append(found.pastes[0][2])
        assert found.pastes[0][1].image().tobytes() == clean.tobytes()
    assert boxes[0] == boxes[1] == boxes[2]


def test_every_picture_of_a_batch_has_its_own_crop() -> None:
    found = prepared(
        image=[photo(0, 150, 110), photo(1, 64, 64)],
        mask_image=[mask((90, 61, 131, 83), 150, 110), mask((0, 0, 9, 9))],
        padding_mask_crop=4,
    )
    assert [paste[0].size for paste in found.pastes] == [(150, 110), (64, 64)]
    assert found.pastes[1][2] == (0, 0, 13, 13) and found.count == 2


def test_one_mask_serves_all_pictures() -> None:
    found = prepared(image=[photo(0), photo(1)], mask_image=mask(), padding_mask_crop=4)
    assert found.count == 2 and found.pastes[0][1] is found.pastes[1][1]
    assert prepared(image=[photo(0), photo(1)], mask_image=mask()).count == 2
    assert prepared(image=photo(), mask_image=[mask()] * 3).count == 3


def test_a_mask_of_another_size_is_scaled_and_said_to_be() -> None:
    with pytest.warns(UserWarning, match=r"mask_image is 122x86 but image is 61x43.*same size"):
        found = prepared(image=photo(0, 61, 43), mask_image=mask((0, 0, 60, 86), 122, 86))
    (repaint,) = found.masks
    assert repaint.levels[:43, :30].all() and repaint.levels.sum() == 30 * 43


def test_latents_have_the_size_of_their_picture() -> None:
    found = prepared(image=torch.randn(2, 4, 6, 10), mask_image=mask((0, 0, 8, 8), 80, 48))
    assert (found.height, found.width) == (48, 80) and found.pixels is None and found.count == 2
