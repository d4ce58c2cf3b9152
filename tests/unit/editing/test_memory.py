"""When memory runs out during an edit: less at once, with a warning, and no memory left over."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retouch
from retouch.editing.editor import Editor
from retouch.editing.memory import ran_out, with_fallbacks, with_tiled_vae

PHOTO = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
HOLE = (40, 40, 80, 80)
FAST: dict[str, Any] = {"steps": 2, "size": 128, "seed": 1}


@pytest.fixture
def editor(tiny_sd_inpaint: Path) -> Editor:
    return retouch.load(tiny_sd_inpaint, device="cpu", dtype="float32", progress=False)


class Fails:
    """A module's forward that runs out of memory the first few times, or while its input is large."""

    def __init__(self, times: int, error: type[BaseException], largest: int = 0) -> None:
        self.times, self.error, self.largest, self.seen = times, error, largest, []

    def __call__(self, module: Any, args: Any) -> None:
        self.seen.append(tuple(args[0].shape[-2:]))
        if self.times > 0 or (self.largest and max(self.seen[-1]) > self.largest):
            self.times -= 1
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB")


ERRORS = [torch.OutOfMemoryError, MemoryError, RuntimeError]


@pytest.mark.parametrize("error", ERRORS)
def test_the_second_attempt_has_the_vae_in_tiles(editor: Editor, error: Any) -> None:
    plain = editor.inpaint(PHOTO, HOLE, **FAST)
    fails = Fails(1, error)
    handle = editor.pipeline.unet.register_forward_pre_hook(fails)
    decoded: list[tuple[int, int]] = []
    vae = editor.pipeline.vae
    tiles = vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(tuple(args[0].shape[-2:])))
    try:
        with pytest.warns(
            UserWarning, match=r"Memory ran out \(CUDA out of.*with the VAE in tiles.*smaller size"
        ) as told:
            edit = editor.inpaint(PHOTO, HOLE, **FAST)
    finally:
        handle.remove()
        tiles.remove()
    assert len(told) == 1 and edit.image.size == (128, 128)
    assert max(max(size) for size in decoded) <= 8, "the last 128 pixels were decoded in tiles of 64"
    assert not vae.use_tiling and vae.tile_sample_min_size == 64
    outside = np.asarray(edit.mask) == 0
    same = (np.asarray(edit.image) == np.asarray(plain.image)).all(axis=-1)
    assert same[outside].mean() > 0.95
    again = editor.inpaint(PHOTO, HOLE, **FAST)
    np.testing.assert_array_equal(np.asarray(again.image), np.asarray(plain.image))


def test_then_a_smaller_crop_and_half_of_it(editor: Editor) -> None:
    fails = Fails(0, torch.OutOfMemoryError, largest=8)
    handle = editor.pipeline.unet.register_forward_pre_hook(fails)
    try:
        with pytest.warns(UserWarning) as told:
            edit = editor.inpaint(PHOTO, HOLE, **FAST)
    finally:
        handle.remove()
    said = [str(warning.message) for warning in told]
    assert ["tiles" in said[0], "with a smaller crop" in said[1], "half the size" in said[2]] == [True] * 3
    assert fails.seen[:4] == [(16, 16), (16, 16), (12, 12), (8, 8)]
    assert edit.image.size == (128, 128) and (np.asarray(edit.image) != PHOTO).any()


def test_a_large_hole_falls_back_to_one_pass(editor: Editor) -> None:
    fails = Fails(0, MemoryError, largest=8)
    handle = editor.pipeline.unet.register_forward_pre_hook(fails)
    try:
        with pytest.warns(UserWarning, match="Memory ran out"):
            edit = editor.inpaint(np.tile(PHOTO, (3, 3, 1)), (50, 50, 330, 330), **{**FAST, "size": 96})
    finally:
        handle.remove()
    assert edit.image.size == (384, 384) and max(fails.seen[-1]) <= 8


def test_where_nothing_helps_the_error_is_passed_on_and_the_editor_goes_on(editor: Editor) -> None:
    plain = np.asarray(editor.inpaint(PHOTO, HOLE, **FAST).image)
    handle = editor.pipeline.unet.register_forward_pre_hook(Fails(99, torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="Memory ran out"):
        editor.inpaint(PHOTO, HOLE, **FAST)
    handle.remove()
    assert not editor.pipeline.vae.use_tiling
    np.testing.assert_array_equal(np.asarray(editor.inpaint(PHOTO, HOLE, **FAST).image), plain)


def test_other_errors_are_not_taken_for_it(editor: Editor) -> None:
    handle = editor.pipeline.unet.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    )
    with pytest.raises(RuntimeError, match="shapes"), warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.inpaint(PHOTO, HOLE, **FAST)
    handle.remove()


def test_a_vae_that_the_caller_tiles_stays_tiled(editor: Editor) -> None:
    editor.pipeline.enable_vae_tiling()
    handle = editor.pipeline.unet.register_forward_pre_hook(Fails(1, MemoryError))
    with pytest.warns(UserWarning, match="Memory ran out"):
        editor.inpaint(PHOTO, HOLE, **FAST)
    handle.remove()
    assert editor.pipeline.vae.use_tiling and editor.pipeline.vae.tile_sample_min_size == 64


def test_the_tiled_front_shares_the_weights(editor: Editor) -> None:
    front = with_tiled_vae(editor.pipeline, 32)
    assert front.vae is not editor.pipeline.vae and front.unet is editor.pipeline.unet
    pairs = zip(front.vae.parameters(), editor.pipeline.vae.parameters(), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)
    assert (front.vae.tile_sample_min_size, front.vae.tile_latent_min_size) == (32, 4)


def test_what_the_failed_attempt_held_is_free_before_the_next() -> None:
    class Large:
        pass

    held: list[Any] = []

    def first() -> str:
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError("full")

    def second() -> str:
        gc.collect()
        assert held[0]() is None
        return "done"

    with pytest.warns(UserWarning, match=r"\(full\). Trying again smaller"):
        assert with_fallbacks([("", first), ("smaller", second)]) == "done"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_running_out(error: BaseException, expected: bool) -> None:
    assert ran_out(error) == expected


def test_a_real_shortage(tiny_sd: Path) -> None:
    """torch refuses an allocation that no machine has: the message is the allocator's own."""
    editor = retouch.load(tiny_sd, device="cpu", dtype="float32", progress=False)
    asked: list[int] = []

    def greedy(module: Any, args: Any) -> None:
        asked.append(1)
        if len(asked) == 1:
            torch.empty(2**55, dtype=torch.uint8)

    handle = editor.pipeline.unet.register_forward_pre_hook(greedy)
    with pytest.warns(UserWarning, match="Memory ran out"):
        edit = editor.inpaint(Image.fromarray(PHOTO), HOLE, **FAST)
    handle.remove()
    assert edit.image.size == (128, 128)
