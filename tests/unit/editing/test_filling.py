"""Erasing and extending without a model: what stays, what repeats, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image
from refusals import refuses

import retouch
from retouch.editing.filling import frame_width
from retouch.editing.options import Options, Update

HOLE = (50, 40, 80, 66)
MODES = ["RGB", "RGBA", "L", "LA", "P", "PA", "I;16", "I", "F", "1", "CMYK"]
SIDES = ("left", "top", "right", "bottom")


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded, whatever this machine's environment says."""
    monkeypatch.delenv("RETOUCH_MODEL", raising=False)
    monkeypatch.setattr("retouch.editing.editor.load", lambda *_, **__: pytest.fail("a model was loaded"))


def texture(width: int = 130, height: int = 100, seed: int = 0) -> np.ndarray:
    """Return blobs of a few pixels in every colour."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 40 * soft / soft.std(), 0, 255).astype(np.uint8)


def photo(mode: str, width: int = 130, height: int = 100) -> Image.Image:
    pixels = texture(width, height)
    if mode == "PA":
        return photo("P", width, height).convert("PA")
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), np.dstack([pixels, pixels[..., 0]]).tobytes())
    if mode in ("I;16", "I"):
        return Image.fromarray(pixels[..., 0].astype("u2" if mode == "I;16" else "i4") * 257)
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    if mode in ("RGBA", "LA"):
        picture = Image.fromarray(pixels).convert(mode)
        picture.putalpha(Image.fromarray(texture(width, height, seed=1)[..., 0]))
        return picture
    return Image.fromarray(pixels).convert(mode)


def stored(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def same(first: retouch.Edit, second: retouch.Edit, index: int = 0) -> bool:
    """Whether the second edit's only picture is one of the first edit's, in every byte."""
    return first.images[index].tobytes() == second.image.tobytes()


class TestErase:
    @pytest.mark.parametrize("mode", MODES)
    def test_only_the_mask_changes(self, mode: str) -> None:
        given = photo(mode)
        edit = retouch.erase(given, HOLE)
        before, after = stored(given), stored(edit.image)
        assert edit.image.mode == mode and edit.image.size == given.size
        inside = stored(edit.mask) > 0
        np.testing.assert_array_equal(after[~inside], before[~inside])
        changed = after != before
        if mode in ("RGBA", "LA", "PA"):
            assert not changed[..., -1].any(), "the alpha stays"
            changed = changed[..., :-1]
        changed = changed.any(axis=-1) if changed.ndim == 3 else changed
        assert changed[inside].mean() > (0.3 if mode == "1" else 0.7)
        if mode in ("P", "PA"):
            assert edit.image.getpalette() == given.getpalette()

    def test_the_mask_grows_with_the_hole_by_one_to_eight_pixels(self) -> None:
        small = retouch.erase(texture(), HOLE)
        assert small.settings["grow"] == 1 and small.mask.getbbox() == (49, 39, 81, 67)
        large = retouch.erase(texture(1300, 60), (100, 20, 700, 40), fill="color")
        assert large.settings["grow"] == 6
        assert retouch.erase(texture(1300, 60), (100, 20, 1200, 40), fill="color").settings["grow"] == 8
        assert retouch.erase(texture(), HOLE, grow=0).mask.getbbox() == HOLE
        assert retouch.erase(texture(), HOLE, grow=5).settings["grow"] == 5

    def test_a_mask_that_would_cover_the_photo_does_not_grow(self) -> None:
        edit = retouch.erase(texture(60, 60), (0, 1, 60, 60), fill="telea")
        assert edit.settings["grow"] == 0 and edit.coverage == pytest.approx(59 / 60)

    def test_a_soft_mask_mixes_old_and_new(self) -> None:
        mask = np.zeros((100, 130), np.uint8)
        mask[40:66, 50:80] = 255
        mask[20:30, 20:30] = 60
        pixels = texture()
        after = stored(retouch.erase(pixels, mask, grow=0, fill="color").image).astype(int)
        difference = np.abs(after - pixels)
        assert 0 < difference[20:30, 20:30].mean() < difference[40:66, 50:80].mean() / 2
        assert not difference[mask == 0].any()

    def test_a_feather_reaches_over_the_edge(self) -> None:
        pixels = texture()
        changed = (stored(retouch.erase(pixels, HOLE, feather=6).image) != pixels).any(axis=-1)
        rows, columns = np.nonzero(changed)
        assert 43 <= columns.min() < 49 and 33 <= rows.min() < 39, "6 pixels beyond the mask that grew by 1"
        assert 81 < columns.max() < 87 and 67 < rows.max() < 73

    def test_a_texture_is_continued_and_an_object_is_gone(self) -> None:
        pixels = texture()
        pixels[45:61, 55:75] = (255, 0, 255)
        edit = retouch.erase(pixels, (54, 44, 76, 62))
        part = stored(edit.image)[45:61, 55:75].astype(int)
        assert (part[..., 0] + part[..., 2] - 2 * part[..., 1]).max() < 400, "no pixel is that magenta"
        smear = retouch.erase(pixels, (54, 44, 76, 62), fill="telea")
        assert edit.seam < 1.3 and 0.5 < edit.detail < 1.4 and smear.detail < edit.detail / 1.5

    def test_several_holes_are_filled_in_their_own_parts(self) -> None:
        pixels = texture(900, 120)
        holes = [(20, 40, 40, 60), (850, 40, 870, 60)]
        edit = retouch.erase(pixels, holes)
        assert len(edit.crops) == 2 and edit.crops[0].box[2] < edit.crops[1].box[0]
        changed = (stored(edit.image) != pixels).any(axis=-1)
        assert all(changed[top:bottom, left:right].mean() > 0.9 for left, top, right, bottom in holes)
        assert not changed[:, 100:800].any()

    def test_every_form_of_photo_and_mask(self, tmp_path: Path) -> None:
        pixels, mask = texture(), np.zeros((100, 130), bool)
        mask[40:66, 50:80] = True
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        Image.fromarray(mask).save(tmp_path / "mask.png")
        plain = retouch.erase(pixels, HOLE)
        assert same(plain, retouch.erase(tmp_path / "photo.png", tmp_path / "mask.png"))
        assert same(plain, retouch.erase(Image.fromarray(pixels), mask))
        assert same(plain, retouch.erase(pixels, ~mask, invert=True))


class TestSeeds:
    def test_the_same_seed_gives_the_same_pixels_and_others_differ(self) -> None:
        pixels = texture()
        first, again, other = (retouch.erase(pixels, HOLE, seed=seed) for seed in (5, 5, 6))
        assert same(first, again) and not same(first, other) and other.seeds == [6]

    def test_without_a_seed_it_is_0(self) -> None:
        pixels = texture()
        edit = retouch.erase(pixels, HOLE)
        assert edit.seed == edit.settings["seed"] == 0 and same(edit, retouch.erase(pixels, HOLE, seed=0))
        wide = retouch.outpaint(pixels, left=20)
        assert wide.seed == 0 and same(wide, retouch.outpaint(pixels, left=20, seed=0))

    def test_variations_are_seeds_in_a_row(self) -> None:
        pixels = texture()
        edit = retouch.erase(pixels, HOLE, seed=3, variations=3)
        assert edit.seeds == [3, 4, 5] and len(edit.seams) == len(edit.details) == 3
        for index, seed in enumerate(edit.seeds):
            alone = retouch.erase(pixels, HOLE, seed=seed)
            assert same(edit, alone, index) and alone.seam == edit.seams[index]
            assert alone.detail == edit.details[index]

    def test_the_number_of_threads_changes_nothing(self) -> None:
        code = (
            "import numpy as np, retouch, sys\n"
            "p = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)\n"
            "sys.stdout.buffer.write(retouch.erase(p, (30, 30, 60, 60)).image.tobytes())"
        )
        outputs = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**_environment(), "OMP_NUM_THREADS": n},
                capture_output=True,
            ).stdout
            for n in ("1", "3")
        }
        assert len(outputs) == 1 and len(outputs.pop()) == 90 * 90 * 3


class TestSource:
    """A photo with one half red and the other blue: what is copied is seen by its colour."""

    @pytest.fixture
    def halves(self) -> np.ndarray:
        pixels = texture(160, 100) // 4
        pixels[:, :80, 0] += 150
        pixels[:, 80:, 2] += 150
        return pixels

    @pytest.mark.parametrize("form", ["box", "array", "picture", "file", "polygon", "grey"])
    def test_only_the_source_is_copied(self, halves: np.ndarray, tmp_path: Path, form: str) -> None:
        usable = np.zeros((100, 160), np.uint8)
        usable[:, 100:] = 255
        Image.fromarray(usable).save(tmp_path / "source.png")
        source = {
            "box": (100, 0, 160, 100),
            "array": usable > 0,
            "picture": Image.fromarray(usable),
            "file": tmp_path / "source.png",
            "polygon": [(100, 0), (159, 0), (159, 99), (100, 99)],
            "grey": np.where(usable > 0, 255, 100).astype(np.uint8),  # what is darker than half is not copied
        }[form]
        edit = retouch.erase(halves, (30, 40, 50, 60), source=source, grow=0)
        part = stored(edit.image)[44:56, 34:46].astype(int)
        # The colours are adapted to those at the hole's edge, the pattern is that of the source.
        assert same(edit, retouch.erase(halves, (30, 40, 50, 60), source=usable > 0, grow=0))
        assert not same(edit, retouch.erase(halves, (30, 40, 50, 60), grow=0))
        assert part[..., 2].mean() > part[..., 0].mean() + 30

    def test_a_white_source_allows_all_that_is_allowed_anyway(self, halves: np.ndarray) -> None:
        hole = (30, 40, 50, 60)
        assert same(
            retouch.erase(halves, hole, source=np.ones((100, 160), bool)), retouch.erase(halves, hole)
        )

    def test_outpaint_reads_it_in_the_photos_size(self, halves: np.ndarray) -> None:
        edit = retouch.outpaint(halves, left=20, source=(100, 0, 160, 100))
        new = stored(edit.image)[:, 2:12].astype(int)
        assert new[..., 2].mean() > new[..., 0].mean() + 30
        np.testing.assert_array_equal(stored(edit.image)[:, 20:], halves)

    def test_one_that_cannot_be_used_is_refused(self, halves: np.ndarray, tmp_path: Path) -> None:
        def erase(source: Any, **options: Any) -> None:
            retouch.erase(halves, (30, 40, 50, 60), source=source, **options)

        for source, fact in (
            (np.zeros((100, 160), bool), "empty"),
            (np.ones((10, 16), bool), "16x10"),
            (tmp_path / "nowhere.png", "nowhere.png"),
            ((5, 5, 1, 1), "160x100"),
        ):
            with refuses("source", fact):
                erase(source)
        with refuses("source", "telea"):
            erase((0, 0, 20, 20), fill="telea")
        with refuses("mask", "source", "9x9"):
            erase((0, 0, 5, 5))
        with refuses("source", "9x9", "telea"):
            retouch.outpaint(halves, left=10, source=(0, 0, 5, 5))
        erase(np.ones((10, 16), bool), fit_mask=True)


class TestOptions:
    MODELS: ClassVar[dict[str, Any]] = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "steps": 4,
        "strength": 0.5,
        "guidance_scale": 2.0,
        "scheduler": "ddim",
        "context": "20%",
        "size": 64,
        "one_pass": True,
        "matte": True,
        "join": "poisson",
        "speed": "fast",
        "guidance_interval": (0.2, 0.8),
        "reuse_deep_features": 2,
        "int8": True,
        "record": True,
    }

    @pytest.mark.parametrize("name", MODELS)
    def test_those_of_a_model_are_refused(self, name: str) -> None:
        with refuses(name, "sd15-inpaint", "erase"):
            retouch.erase(texture(), HOLE, **{name: self.MODELS[name]})
        if name != "prompt":  # with one, a model paints
            with refuses(name, "sd15-inpaint", "outpaint"):
                retouch.outpaint(texture(), left=8, **{name: self.MODELS[name]})

    def test_each_is_one_or_the_other(self) -> None:
        taken = {
            name for name in retouch.erase(texture(), HOLE).settings if name in Options.__dataclass_fields__
        }
        assert taken | {"source", "progress"} == set(Options.__dataclass_fields__) - set(self.MODELS)

    def test_unknown_ones_and_wrong_values_are_refused(self) -> None:
        for options, parameter in (
            ({"stepz": 3}, "stepz"),
            ({"variant": "fp16"}, "variant"),
            ({"fill": "paint"}, "fill"),
            ({"seed": -1}, "seed"),
            ({"variations": 0}, "variations"),
            ({"feather": -1}, "feather"),
            ({"progress": 3}, "progress"),
            ({"grow": 300}, "mask"),
        ):
            with refuses(parameter):
                retouch.erase(texture(), HOLE, **options)

    @pytest.mark.parametrize("fill", ["patches", "blur", "telea", "ns", "noise", "color"])
    def test_every_fill_fills(self, fill: str) -> None:
        pixels = texture()
        edit = retouch.erase(pixels, HOLE, fill=fill)
        inside = stored(edit.mask) > 0
        changed = (stored(edit.image) != pixels).any(axis=-1)
        assert changed[inside].mean() > 0.9 and not changed[~inside].any()
        assert edit.settings["fill"] == fill
        wide = retouch.outpaint(pixels, right=20, fill=fill)
        np.testing.assert_array_equal(stored(wide.image)[:, :130], pixels)
        assert stored(wide.image)[:, 130:].any()

    def test_the_original_is_no_fill(self) -> None:
        with refuses("fill", "original", "patches"):
            retouch.erase(texture(), HOLE, fill="original")
        with refuses("fill", "original", "patches"):
            retouch.outpaint(texture(), left=4, fill="original")

    def test_device_and_dtype_change_nothing(self) -> None:
        pixels = texture()
        place = {"device": "cpu", "dtype": "float32"}
        assert same(retouch.erase(pixels, HOLE), retouch.erase(pixels, HOLE, **place))
        assert same(retouch.outpaint(pixels, left=9), retouch.outpaint(pixels, left=9, **place))


class TestProgress:
    def test_it_tells_where_an_edit_stands(self) -> None:
        told: list[Update] = []
        holes = [(20, 40, 40, 60), (850, 40, 870, 60)]
        retouch.erase(texture(900, 120), holes, variations=2, progress=told.append)
        places = [(each.variation, each.crop, each.step / each.steps) for each in told]
        assert places == sorted(places) and {place[:2] for place in places} == {
            (1, 1),
            (1, 2),
            (2, 1),
            (2, 2),
        }
        assert {(each.variations, each.crops) for each in told} == {(2, 2)} and told[-1].step == told[
            -1
        ].steps
        assert told[-1].preview().size == (900 - (849 - 128), 120)

    @pytest.mark.parametrize("fill", ["patches", "telea"])
    @pytest.mark.parametrize("after", [1, 3])
    def test_false_cancels(self, fill: str, after: int) -> None:
        told: list[Update] = []

        def listen(update: Update) -> bool:
            told.append(update)
            return len(told) < after

        with pytest.raises(retouch.Cancelled):
            retouch.erase(texture(), HOLE, fill=fill, variations=4, progress=listen)
        assert len(told) == after

    def test_an_error_in_it_comes_through(self) -> None:
        def fail(update: Update) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            retouch.erase(texture(), HOLE, progress=fail)


class TestResult:
    @pytest.mark.parametrize(
        "options",
        [{}, {"grow": 3, "feather": 4, "seed": 9}, {"fill": "noise", "seed": 2}, {"invert": True}],
        ids=lambda options: "-".join(options) or "none",
    )
    def test_the_settings_repeat_an_erasure(self, options: dict[str, Any], tmp_path: Path) -> None:
        pixels, mask = texture(), np.zeros((100, 130), np.uint8)
        mask[40:66, 50:80] = 255
        mask = 255 - mask if options.get("invert") else mask
        edit = retouch.erase(pixels, mask, **options)
        path = edit.save(tmp_path / "result.png")
        with Image.open(path) as saved:
            saved.load()
            settings = json.loads(saved.text["retouch"])  # type: ignore[attr-defined]
            np.testing.assert_array_equal(stored(saved), stored(edit.image))
        assert settings == edit.settings and settings["model"] == "patches"
        known = {name: settings[name] for name in Options.__dataclass_fields__ if name in settings}
        assert same(edit, retouch.erase(pixels, mask, **known))

    def test_the_settings_repeat_an_extension(self) -> None:
        pixels = texture()
        edit = retouch.outpaint(pixels, aspect="2:1", seed=4, grow=2)
        settings = json.loads(json.dumps(edit.settings))
        known = {name: settings[name] for name in Options.__dataclass_fields__ if name in settings}
        known |= dict(zip(SIDES, settings["margins"], strict=True))
        assert settings["verb"] == "outpaint" and same(edit, retouch.outpaint(pixels, **known))

    def test_its_parts(self) -> None:
        edit = retouch.erase(texture(), HOLE)
        assert edit.coverage == pytest.approx(32 * 28 / 13000, rel=0.05) and edit.recording is None
        assert set(edit.timings) == {"prepare", "fill"} and edit.crop == edit.crops[0].box
        assert (edit.crops[0].width, edit.crops[0].height) == edit.crops[0].size, "it is not scaled"
        assert edit.detail == edit.details[0]
        lines = edit.text()["parameters"].splitlines()
        assert lines[0] == "" and lines[1].startswith("Seed: 0, ") and "Model: patches" in lines[1]


class TestOutpaint:
    @pytest.mark.parametrize("mode", MODES)
    def test_nothing_inside_changes(self, mode: str) -> None:
        given = photo(mode)
        edit = retouch.outpaint(given, left=12, top=7, right=3, bottom=20)
        assert edit.image.mode == mode and edit.image.size == (145, 127)
        after = stored(edit.image.crop((12, 7, 142, 107)))
        np.testing.assert_array_equal(after, stored(given))
        assert edit.settings["margins"] == [12, 7, 3, 20]
        new = np.ones((127, 145), bool)
        new[7:107, 12:142] = False
        np.testing.assert_array_equal(stored(edit.mask) > 0, new)
        whole = stored(edit.image)
        if mode in ("RGBA", "LA", "PA"):
            assert (whole[new][:, -1] == 255).all(), "what is new is opaque"
        if mode == "RGB":
            assert whole[new].std() > 0.7 * whole[~new].std(), "the texture continues, in the corners too"

    @pytest.mark.parametrize("side", SIDES)
    def test_one_side(self, side: str) -> None:
        pixels = texture()
        edit = retouch.outpaint(pixels, **{side: 24})
        left, top = (24 if side == name else 0 for name in ("left", "top"))
        assert edit.image.size == ((154, 100) if side in ("left", "right") else (130, 124))
        np.testing.assert_array_equal(stored(edit.image)[top : top + 100, left : left + 130], pixels)
        assert 0.7 < edit.detail < 1.4 and retouch.outpaint(pixels, **{side: 24}, fill="blur").detail < 0.1

    @pytest.mark.parametrize(
        ("aspect", "size"), [("2:1", (200, 100)), ("1:1", (130, 130)), (1.5, (150, 100))]
    )
    def test_an_aspect(self, aspect: Any, size: tuple[int, int]) -> None:
        edit = retouch.outpaint(texture(), aspect=aspect)
        assert edit.image.size == size

    def test_what_makes_no_sense_is_refused(self) -> None:
        for options, parameter in (
            ({}, "aspect"),
            ({"left": 5, "aspect": "2:1"}, "aspect"),
            ({"left": -5}, "left"),
            ({"left": 5, "invert": True}, "invert"),
            ({"left": 5, "grow": -2}, "grow"),
            ({"left": 5, "grow": 500}, "grow"),
        ):
            with refuses(parameter):
                retouch.outpaint(texture(), **options)

    @pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3), (8, 40)])
    def test_tiny_photos_have_no_patches(self, size: tuple[int, int]) -> None:
        pixels = texture(*size)
        with refuses("photo", f"{size[0]}x{size[1]}", "telea"):
            retouch.outpaint(pixels, left=4)
        edit = retouch.outpaint(pixels, left=4, top=1, fill="telea")
        np.testing.assert_array_equal(stored(edit.image)[1:, 4:], pixels)

    @pytest.mark.parametrize("size", [(9, 9), (12, 10), (30, 9)])
    def test_small_photos_have_a_few(self, size: tuple[int, int]) -> None:
        pixels = texture(*size)
        edit = retouch.outpaint(pixels, right=5, bottom=2)
        np.testing.assert_array_equal(stored(edit.image)[: size[1], : size[0]], pixels)

    def test_a_frame_is_repainted_on_the_sides_that_are_extended(self) -> None:
        pixels = texture()
        framed = pixels.copy()
        framed[:3], framed[-3:], framed[:, :3], framed[:, -3:] = 0, 0, 0, 0
        edit = retouch.outpaint(framed, left=20, bottom=10)
        after = stored(edit.image)
        np.testing.assert_array_equal(after[:97, 23:], framed[:97, 3:], "the other frames stay")
        assert after[5:95, 16:24].mean() > 100 and after[95:103, 30:].mean() > 100, "no dark line is left"
        assert stored(edit.mask)[50, :26].tolist() == [255] * 23 + [0] * 3


class TestFrameWidth:
    """The outermost lines of a photo, from its edge inwards."""

    @staticmethod
    def plain(level: int = 120) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 2, (16, 200, 3))
        return (level + noise).astype(np.float32)

    @pytest.mark.parametrize("width", [1, 2, 5, 8])
    @pytest.mark.parametrize("level", [0, 40, 255])
    def test_lines_of_another_colour(self, width: int, level: int) -> None:
        for lines in (self.plain(), texture(200, 16).astype(np.float32)):
            lines[:width] = level
            assert frame_width(lines) == width

    def test_a_blurred_line(self) -> None:
        lines = self.plain()
        lines[:4] -= np.array([110, 80, 45, 15], np.float32)[:, None, None]
        assert frame_width(lines) == 4

    @pytest.mark.parametrize("slope", [0, 1, 6, 15])
    def test_a_gradient_has_none(self, slope: int) -> None:
        assert frame_width(self.plain(0) + slope * np.arange(16, dtype=np.float32)[:, None, None]) == 0

    @pytest.mark.parametrize("seed", range(20))
    def test_textures_have_none(self, seed: int) -> None:
        lines = texture(200, 16, seed).astype(np.float32)
        assert frame_width(lines) == 0 and frame_width(lines.swapaxes(0, 1)[:16]) == 0

    def test_noise_a_plain_photo_and_too_few_lines_have_none(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (16, 200, 3)).astype(np.float32)
        assert frame_width(noise) == frame_width(np.full((16, 200, 3), 9, np.float32)) == 0
        for count in range(8):
            assert frame_width(noise[:count]) == frame_width(self.plain()[:count]) == 0

    def test_a_step_deeper_inside_is_a_part_of_the_picture(self) -> None:
        lines = self.plain()
        lines[9:] += 90
        assert frame_width(lines) == 0


def _environment() -> dict[str, str]:
    """Return the environment in which this process finds retouch, without the model of a machine."""
    import os

    places = [place for place in sys.path if place]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETOUCH_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(places)}


@pytest.mark.parametrize(
    "call", ["retouch.erase('photo.png', (50, 40, 80, 66))", "retouch.outpaint('photo.png', left=20)"]
)
def test_torch_is_not_imported(tmp_path: Path, call: str) -> None:
    Image.fromarray(texture()).save(tmp_path / "photo.png")
    code = (
        f"import sys, retouch\n{call}.save('out.png')\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=_environment(), check=True)
    assert (tmp_path / "out.png").is_file()


class TestChoiceOfModel:
    @pytest.fixture
    def loaded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the models that were asked for; none is loaded."""
        from retouch.editing import verbs

        names: list[str] = []

        class Asked(Exception):
            pass

        def load(name: Any, **_: Any) -> None:
            names.append(name)
            raise Asked

        monkeypatch.setattr("retouch.editing.editor.load", load)
        monkeypatch.setattr(verbs, "_kept", None)
        monkeypatch.setattr(self, "Asked", Asked, raising=False)
        return names

    def test_a_model_or_a_prompt_that_is_named_is_used(
        self, loaded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pixels = texture()
        asked: Any = self.Asked  # type: ignore[attr-defined]
        with pytest.raises(asked):
            retouch.erase(pixels, HOLE, model="builtin")
        with pytest.raises(asked):
            retouch.outpaint(pixels, left=8, model="builtin-regular")
        with pytest.raises(asked):
            retouch.outpaint(pixels, "a park", left=8)
        with pytest.raises(asked):
            retouch.inpaint(pixels, HOLE)
        monkeypatch.setenv("RETOUCH_MODEL", "some/model")
        with pytest.raises(asked):
            retouch.erase(pixels, HOLE)
        with pytest.raises(asked):
            retouch.outpaint(pixels, left=8)
        assert loaded == ["builtin", "builtin-regular", "builtin", "builtin", "some/model", "some/model"]

    def test_nothing_named_needs_none(self, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        for model in (None, ""):
            retouch.erase(texture(), HOLE, model=model)
            retouch.outpaint(texture(), "  ", left=8, model=model)
        monkeypatch.setenv("RETOUCH_MODEL", "")
        retouch.erase(texture(), HOLE)
        assert loaded == []


def test_patches_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_MODEL", "no/such-model")
    edit = retouch.erase(texture(), HOLE, model="patches")
    assert edit.settings["model"] == "patches"
    again = {name: edit.settings[name] for name in ("model", "grow", "seed")}
    assert retouch.erase(texture(), HOLE, **again).image.tobytes() == edit.image.tobytes()
    with refuses("model", "erase and outpaint"):
        retouch.inpaint(texture(), HOLE, "a red apple", model="patches")
