"""Painting a crop: the arguments of the pipeline's call, and the use of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from refusals import refuses

import retouch
from retouch.editing.editor import Editor
from retouch.images.photo import Photo

Y, X = np.mgrid[0:300, 0:400]
SLOPE = np.stack([60 + X / 4, 80 + Y / 4, 160 - X / 5], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module", params=["tiny_sd", "tiny_sd_inpaint"])
def editor(request: pytest.FixtureRequest) -> Editor:
    folder: Path = request.getfixturevalue(request.param)
    return retouch.load(folder, device="cpu", dtype="float32", progress=False)


class Calls:
    """Records the arguments of a pipeline's calls, and may answer in place of the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, editor: Editor, answer: Any = None) -> None:
        self.made: list[dict[str, Any]] = []
        real = type(editor.pipeline).start

        class Answered:
            num_timesteps, images = 1, property(lambda self: [answer(self.arguments)])

            def __init__(self, arguments: dict[str, Any]) -> None:
                self.arguments = arguments

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                pass

            def __iter__(self) -> Any:
                return iter(())

            def result(self) -> Any:
                return self

        def start(pipeline: Any, **arguments: Any) -> Any:
            self.made.append(arguments)
            return real(pipeline, **arguments) if answer is None else Answered(arguments)

        monkeypatch.setattr(type(editor.pipeline), "start", start)


def test_a_crop_that_comes_back_as_it_was_changes_nothing(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting, scaling and pasting back shift nothing."""
    Calls(monkeypatch, editor, lambda arguments: arguments["image"])
    for hole in ((40, 40, 110, 90), (0, 250, 33, 300), (377, 3, 400, 14)):
        for join in ("plain", "match", "poisson"):
            edit = editor.inpaint(SLOPE, hole, join=join, size=128)
            assert np.abs(np.asarray(edit.image).astype(int) - SLOPE).max() <= 2


def test_a_shift_of_colour_is_taken_back(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(arguments: dict[str, Any]) -> Image.Image:
        values = np.asarray(arguments["image"]).astype(int) + np.array([12, -8, 10])
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    Calls(monkeypatch, editor, shifted)
    off = {
        join: np.abs(
            np.asarray(editor.inpaint(SLOPE, (100, 100, 200, 180), join=join, size=128).image).astype(int)
            - SLOPE
        ).max()
        for join in ("plain", "match", "poisson")
    }
    assert off["plain"] >= 12 and off["match"] <= 2 and off["poisson"] <= 2
    assert editor.inpaint(SLOPE, (100, 100, 200, 180), size=128).seam < 1.1


def test_every_latent_that_the_hole_touches_is_repainted(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, editor, lambda arguments: arguments["image"])
    for feather in (0, None):
        edit = editor.inpaint(SLOPE, (201, 133, 204, 135), size=128, feather=feather)
        mask = np.asarray(calls.made[-1]["mask_image"].image())
        cells = mask.reshape(mask.shape[0] // 8, 8, mask.shape[1] // 8, 8)
        assert (cells.min(axis=(1, 3)) == cells.max(axis=(1, 3))).all() and mask.max() == 255
        crop = edit.crops[0]
        across = crop.width / crop.size[0]
        touched = mask[:, int((201 - crop.box[0]) * across) : int((204 - crop.box[0]) * across) + 1]
        assert (touched.max(axis=0) == 255).all()


@pytest.mark.filterwarnings("ignore:retouch was installed without its native code")
@pytest.mark.parametrize("fill", ["original", "telea", "patches", "noise", "color"])
def test_the_fill_is_what_the_model_sees(editor: Editor, monkeypatch: pytest.MonkeyPatch, fill: str) -> None:
    photo = SLOPE.copy()
    photo[100:180, 100:200] = (255, 0, 0)
    calls = Calls(monkeypatch, editor, lambda arguments: arguments["image"])
    editor.inpaint(photo, (100, 100, 200, 180), size=128, fill=fill)
    seen = np.asarray(calls.made[0]["image"]).astype(int)
    middle = seen[seen.shape[0] // 2, seen.shape[1] // 2]
    assert (tuple(middle) == (255, 0, 0)) == (fill == "original")
    if fill in ("telea", "patches"):
        assert np.abs(middle - SLOPE[140, 150]).max() < 25


class TestLargeHoles:
    def test_two_passes(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, told = Calls(monkeypatch, editor), []
        edit = editor.inpaint(
            SLOPE,
            (50, 40, 350, 260),
            size=128,
            steps=3,
            scheduler="ddim",
            progress=lambda update: told.append((update.step, update.steps)),
        )
        coarse, fine = calls.made
        assert "tile_size" not in coarse and coarse["strength"] == 1 and fine["tile_size"] == 128
        assert coarse["width"] * coarse["height"] == pytest.approx(128**2, rel=0.1)
        # Four working sizes at most, and never more than the photo has.
        assert fine["width"] * fine["height"] == pytest.approx(4 * 128**2, rel=0.1)
        assert fine["strength"] == 0.5 and fine["num_inference_steps"] == 4
        assert told == [(step, 5) for step in (1, 2, 3, 4, 5)]
        assert edit.image.size == (400, 300)
        editor.inpaint(SLOPE, (50, 40, 350, 260), size=128, steps=1, scheduler="ddim", strength=0.3)
        assert calls.made[-1]["strength"] == 0.3, "no more changes than was asked for"

    def test_the_second_pass_sees_the_photo_around_the_hole(
        self, editor: Editor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texture = np.random.default_rng(0).integers(0, 256, SLOPE.shape, dtype=np.uint8)
        calls = Calls(monkeypatch, editor, lambda arguments: arguments["image"].point(lambda level: 128))
        editor.inpaint(texture, (150, 100, 250, 200), size=96, context="80%")
        fine = calls.made[1]["image"]
        assert fine.width > 140
        edge, middle = np.asarray(fine)[:8], np.asarray(fine.crop((80, 80, 120, 120)))
        assert edge.std() > 40 > 4 * middle.std()

    @pytest.mark.parametrize("hole", [(180, 130, 220, 170), (100, 60, 190, 150)])
    def test_one_pass_where_little_is_lost(
        self, editor: Editor, monkeypatch: pytest.MonkeyPatch, hole: Any
    ) -> None:
        calls = Calls(monkeypatch, editor)
        editor.inpaint(SLOPE, hole, size=192, steps=1)
        assert len(calls.made) == 1

    def test_the_noise_is_drawn_on_the_cpu_from_the_seed(
        self, editor: Editor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = Calls(monkeypatch, editor)
        editor.inpaint(
            SLOPE, [(10, 10, 20, 20), (380, 280, 390, 290)], size=64, steps=1, seed=5, variations=2
        )
        sources = [made["generator"] for made in calls.made]
        assert [source.device.type for source in sources] == ["cpu"] * 4
        assert [source.initial_seed() for source in sources] == [5, 5, 6, 6]


def test_only_parts_of_the_photo_are_looked_at(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost follows the hole: no step touches all pixels of a large photo."""
    seen: list[tuple[int, int, int, int]] = []
    real = Photo.pixels
    monkeypatch.setattr(Photo, "pixels", lambda self, box: seen.append(box) or real(self, box))
    edit = editor.inpaint(Image.new("RGB", (4000, 3000), "teal"), (2000, 1500, 2050, 1540), size=64, steps=1)
    assert seen == [edit.crop] and edit.image.size == (4000, 3000)
    assert (edit.crop[2] - edit.crop[0]) * (edit.crop[3] - edit.crop[1]) < 12000


def test_erasing_has_its_own_defaults(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, editor)
    edit = editor.erase(SLOPE, (180, 130, 220, 170), size=64, steps=2)
    assert edit.settings["prompt"] == "" and "person" in edit.settings["negative_prompt"]
    assert edit.settings["fill"] == "telea" and edit.settings["grow"] == 8
    assert edit.mask.getbbox() == (172, 122, 228, 178)
    assert calls.made[0]["strength"] == (0.85 if editor.pipeline.keeps_original else 1.0)
    own = editor.erase(SLOPE, (180, 130, 220, 170), size=64, steps=1, grow=0, fill="blur", strength=0.5)
    assert own.mask.getbbox() == (180, 130, 220, 170) and own.settings["fill"] == "blur"
    assert calls.made[-1]["strength"] == 0.5


def test_no_gradients_are_kept(editor: Editor) -> None:
    with torch.enable_grad():
        edit = editor.inpaint(SLOPE, (180, 130, 220, 170), size=64, steps=1)
    latents = list(editor._cache._latents._values.values())
    assert edit and not any(value.requires_grad for value in latents)


class TestMatte:
    """Only the painted thing is laid on a fill by patches of the photo."""

    NOISE = np.clip(SLOPE + np.random.default_rng(3).normal(0, 20, SLOPE.shape), 0, 255).astype(np.uint8)
    HOLE = (120, 80, 240, 200)

    @staticmethod
    def painter(arguments: dict[str, Any]) -> Image.Image:
        """Answer with a smear, and with a red disc on it if there is a prompt."""
        picture = arguments["image"].filter(ImageFilter.GaussianBlur(8))
        if arguments["prompt"]:
            width, height = picture.size
            ImageDraw.Draw(picture).ellipse(
                (0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height), (230, 30, 40)
            )
        return picture

    def edit(self, editor: Editor, monkeypatch: pytest.MonkeyPatch, prompt: str, **options: Any) -> Any:
        self.calls = Calls(monkeypatch, editor, self.painter)
        return editor.inpaint(self.NOISE, self.HOLE, prompt, size=128, one_pass=True, seed=0, **options)

    def test_the_rest_of_the_hole_is_sharp(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        smeared = self.edit(editor, monkeypatch, "a ball", matte=False)
        laid = self.edit(editor, monkeypatch, "a ball", matte=True)
        ring = np.s_[84:110, 124:236]
        assert np.asarray(smeared.image)[ring].std(axis=(0, 1)).mean() < 12
        assert np.asarray(laid.image)[ring].std(axis=(0, 1)).mean() > 17
        red, green, blue = np.asarray(laid.image)[130:150, 170:190].mean(axis=(0, 1))
        assert red > green + 60 and red > blue + 60
        outside = np.asarray(laid.mask) == 0
        assert np.array_equal(np.asarray(laid.image)[outside], self.NOISE[outside])

    def test_one_more_call_for_all_variations(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        several = self.edit(editor, monkeypatch, "a ball", matte=True, variations=2, steps=5)
        assert [call["prompt"] for call in self.calls.made] == ["a ball", "", "a ball"]
        last = self.calls.made[1]
        assert last["guidance_scale"] == 1 and last["num_inference_steps"] == 1 and last["record"] is None
        assert several.images[0].tobytes() == several.images[1].tobytes()

    def test_nothing_changes_without_a_prompt(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        on, off = (self.edit(editor, monkeypatch, " ", matte=matte) for matte in (True, False))
        assert on.image.tobytes() == off.image.tobytes() and len(self.calls.made) == 1
        assert "matte" not in on.timings

    def test_no_thing_and_nothing_to_copy(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        """The painting is joined as without a matte."""
        monkeypatch.setattr(self, "painter", lambda arguments: arguments["image"], raising=False)
        on, off = (self.edit(editor, monkeypatch, "fog", matte=matte) for matte in (True, False))
        assert on.image.tobytes() == off.image.tobytes()
        monkeypatch.undo()
        frame = np.ones((300, 400), bool)
        frame[::8] = frame[:, ::8] = False  # no place of a patch's size is left

        def edit(matte: bool) -> bytes:
            Calls(monkeypatch, editor, self.painter)
            return editor.inpaint(self.NOISE, frame, "a ball", size=128, seed=0, matte=matte).image.tobytes()

        assert edit(True) == edit(False)

    def test_a_soft_mask_mixes_old_and_new(self, editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
        levels = np.zeros((300, 400), np.float32)
        levels[80:200, 120:240] = 1
        levels[80:200, 100:120] = 0.5
        Calls(monkeypatch, editor, self.painter)
        laid = editor.inpaint(self.NOISE, levels, "a ball", size=128, one_pass=True, seed=0, matte=True)
        off = np.abs(np.asarray(laid.image).astype(int) - self.NOISE)
        assert off[80:200, 100:120].mean() < 0.75 * off[84:110, 124:236].mean() and off[:, :100].max() == 0


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_matte_is_true_or_false(editor: Editor, wrong: Any) -> None:
    with refuses("matte", "neither True nor False"):
        editor.inpaint(SLOPE, (40, 40, 110, 90), "a cat", matte=wrong)


def test_a_model_without_such_a_profile_lays_nothing(editor: Editor) -> None:
    edit = editor.inpaint(SLOPE, (40, 40, 110, 90), "a cat", size=64, steps=1)
    assert edit.settings["matte"] is False and "matte" not in edit.timings
