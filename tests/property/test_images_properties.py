"""Properties of any picture and any mask."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image

from retouch.images.mask import Mask
from retouch.images.mask_reading import read_masks
from retouch.images.overlay import apply_overlay
from retouch.images.processor import VaeImageProcessor
from retouch.images.sizes import crop_to, pad_pixels, resize_picture

quick = settings(max_examples=60, deadline=None)
sides = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def boxed_masks(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A mask and the box that holds all of its white."""
    width, height = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask, (left, top, right, bottom)


@quick
@given(boxed_masks(), st.integers(1, 600), st.integers(1, 600), st.integers(0, 90))
def test_crop_region_holds_the_mask_its_padding_and_the_aspect(
    boxed: tuple[np.ndarray, tuple[int, int, int, int]], width: int, height: int, pad: int
) -> None:
    mask, (left, top, right, bottom) = boxed
    limit_y, limit_x = mask.shape
    x1, y1, x2, y2 = VaeImageProcessor.get_crop_region(Image.fromarray(mask), width, height, pad)
    assert 0 <= x1 <= max(left - pad, 0) and min(right + pad, limit_x) <= x2 <= limit_x
    assert 0 <= y1 <= max(top - pad, 0) and min(bottom + pad, limit_y) <= y2 <= limit_y
    # One pixel of rounding, in the direction that was widened; where there is no room, all of it is used.
    wanted_width, wanted_height = (y2 - y1) * width / height, (x2 - x1) * height / width
    assert (
        abs(x2 - x1 - wanted_width) <= 1
        or abs(y2 - y1 - wanted_height) <= 1
        or (x2 - x1 == limit_x and wanted_width > limit_x)
        or (y2 - y1 == limit_y and wanted_height > limit_y)
    )


@quick
@given(sides, sides, seeds, st.sampled_from(["RGB", "L", "1", "P", "CMYK"]))
def test_outside_of_the_overlay_mask_every_byte_stays(width: int, height: int, seed: int, mode: str) -> None:
    original = Image.fromarray(noise(seed, height, width, 3)).convert(mode)
    painted = Image.fromarray(noise(seed + 1, height, width, 3))
    levels = noise(seed + 2, height, width) * (noise(seed + 3, height, width) > 100)
    levels[noise(seed + 4, height, width) > 200] = 255
    result = np.asarray(apply_overlay(Image.fromarray(levels), original, painted))
    kept, repainted = levels == 0, levels == 255
    np.testing.assert_array_equal(result[kept], np.asarray(original.convert("RGB"))[kept])
    np.testing.assert_array_equal(result[repainted], np.asarray(painted)[repainted])


@quick
@given(boxed_masks(), seeds, st.integers(0, 30))
def test_outside_of_the_mask_every_byte_stays_with_a_crop_too(
    boxed: tuple[np.ndarray, tuple[int, int, int, int]], seed: int, pad: int
) -> None:
    mask, (left, top, right, bottom) = boxed
    crop = VaeImageProcessor.get_crop_region(Image.fromarray(mask), 64, 48, pad)
    original = Image.fromarray(noise(seed, *mask.shape, 3))
    result = apply_overlay(Image.fromarray(mask), original, Image.new("RGB", (64, 48), (10, 200, 30)), crop)
    pixels = np.asarray(result).copy()
    pixels[top:bottom, left:right] = np.asarray(original)[top:bottom, left:right]
    np.testing.assert_array_equal(pixels, np.asarray(original))


@quick
@given(sides, sides, st.integers(1, 3), st.sampled_from([1, 2, 7, 8, 16, 64]), seeds)
def test_padding_then_cropping_changes_nothing(
    height: int, width: int, channels: int, multiple: int, seed: int
) -> None:
    pixels = torch.from_numpy(noise(seed, 2, channels, height, width)).float()
    mask = Mask(noise(seed, height, width) / np.float32(255))
    padded, kept = pad_pixels(pixels, multiple), mask.padded(multiple)
    for padded_height, padded_width in padded.shape[-2:], kept.levels.shape:
        assert padded_height % multiple == 0 and 0 <= padded_height - height < multiple
        assert padded_width % multiple == 0 and 0 <= padded_width - width < multiple
    assert crop_to(padded, height, width).equal(pixels)
    assert padded[..., height:, :width].eq(pixels[..., -1:, :]).all()
    assert padded[..., width:].eq(padded[..., width - 1 : width]).all()
    np.testing.assert_array_equal(kept.cropped((0, 0, width, height)).levels, mask.levels)
    assert np.count_nonzero(kept.levels) == np.count_nonzero(mask.levels)


@quick
@given(sides, sides, seeds)
def test_hardening_is_idempotent_and_leaves_the_input_alone(height: int, width: int, seed: int) -> None:
    for values in torch.from_numpy(noise(seed, height, width) / 255), noise(seed, height, width) / 255:
        before = values + 0
        once = VaeImageProcessor.binarize(values)
        assert set(once.reshape(-1).tolist()) <= {0.0, 1.0}
        assert (VaeImageProcessor.binarize(once) == once).all()
        assert (once == (before >= 0.5)).all() and (values == before).all()


@quick
@given(sides, sides, seeds)
def test_a_mask_says_the_same_in_every_form(height: int, width: int, seed: int) -> None:
    levels = noise(seed, height, width)
    assume(levels.max() > 1)
    (expected,) = read_masks(Image.fromarray(levels))
    fractions = levels.astype(np.float32) / 255
    for form in (
        levels,
        fractions,
        torch.from_numpy(fractions),
        Image.fromarray(levels.astype(np.uint16) * 257),
        expected.image(),
    ):
        (mask,) = read_masks(form)
        np.testing.assert_array_equal(mask.levels, expected.levels)
    hard = expected.hardened()
    for form in (hard.hard, Image.fromarray(hard.hard), hard.image(), hard.tensor()):
        (mask,) = read_masks(form)
        np.testing.assert_array_equal(mask.levels, hard.levels)


@quick
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.sampled_from(["L", "RGB"]), seeds)
def test_preprocess_then_postprocess_gives_the_same_bytes(
    rows: int, columns: int, count: int, mode: str, seed: int
) -> None:
    pictures = [
        Image.fromarray(noise(seed + i, rows * 8, columns * 8, 3)).convert(mode) for i in range(count)
    ]
    for do_normalize in True, False:
        processor = VaeImageProcessor(do_normalize=do_normalize)
        pixels = processor.preprocess(pictures)
        assert pixels.min() >= (-1 if do_normalize else 0) and pixels.max() <= 1
        shown = processor.postprocess(pixels)
        assert [picture.tobytes() for picture in shown] == [picture.tobytes() for picture in pictures]
        again = processor.preprocess(processor.postprocess(pixels, "np"))
        assert (again - pixels).abs().max() <= 1e-6


@quick
@given(sides, sides, st.integers(2, 90), st.integers(2, 90), st.sampled_from(["default", "fill", "crop"]))
def test_a_plain_picture_stays_plain_at_any_size(
    width: int, height: int, new_width: int, new_height: int, mode: str
) -> None:
    """No border, no ringing and no dark strip comes in, whatever the aspect."""
    resized = resize_picture(Image.new("RGB", (width, height), (90, 130, 7)), new_width, new_height, mode)
    assert resized.size == (new_width, new_height)
    # As in the reference, an odd side may leave one dark row or column; models take even sides.
    pixels = np.asarray(resized)[: new_height // 2 * 2, : new_width // 2 * 2]
    assert (pixels == (90, 130, 7)).all()
