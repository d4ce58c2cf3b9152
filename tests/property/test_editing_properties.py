"""The contract of photo-true editing, over random sizes, modes, masks, verbs and options."""

from __future__ import annotations

import io
import json
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as some
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from scipy.ndimage import distance_transform_edt

import retouch
from retouch.editing import filling
from retouch.editing.editor import Editor
from retouch.editing.options import Options
from retouch.editing.result import Edit
from retouch.editing.settings import sampler_names

FAST: dict[str, Any] = {"steps": 1, "size": 64}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
IN_PNG = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
MODES = (*IN_PNG, "PA", "I", "F", "CMYK")
DESCRIPTION, ORIENTATION = 270, 274


@pytest.fixture(scope="session")
def editors(tiny_sd: Path, tiny_sd_inpaint: Path, tiny_sdxl_inpaint: Path) -> dict[str, Editor]:
    folders = {"regular": tiny_sd, "inpainting": tiny_sd_inpaint, "xl": tiny_sdxl_inpaint}
    return {
        name: retouch.load(folder, device="cpu", dtype="float32", progress=False)
        for name, folder in folders.items()
    }


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)

    def channels(count: int) -> np.ndarray:
        values = draw.integers(0, 256, (height, width, count), dtype=np.uint8)
        return values[..., 0] if count == 1 else values

    if mode == "P":
        indexed = Image.fromarray(channels(1)).convert("P")
        indexed.putpalette(draw.integers(0, 256, 3 * 256, dtype=np.uint8).tobytes())
        if seed % 2:
            indexed.info["transparency"] = seed % 256
        return indexed
    if mode == "PA":
        return picture("P", width, height, 2 * seed).convert("PA")
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), channels(4).tobytes())
    if mode == "1":
        return Image.fromarray(channels(1) > 127)
    if mode in ("I", "I;16"):
        high = 256 if mode == "I" and seed % 2 else 65536
        return Image.fromarray(draw.integers(0, high, (height, width)).astype("i4" if mode == "I" else "u2"))
    if mode == "F":
        return Image.fromarray(draw.uniform(0, 255 if seed % 2 else 1, (height, width)).astype("f4"))
    return Image.fromarray(channels(len(mode)))


def as_file(image: Image.Image, orientation: int) -> tuple[bytes, str]:
    """Return a file with all the metadata that has to come back, and its ending."""
    exif = Image.Exif()
    exif[DESCRIPTION] = "a park"
    if orientation > 1:
        exif[ORIENTATION] = orientation
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a park")
    kind, more = ("PNG", {"pnginfo": text}) if image.mode in IN_PNG else ("TIFF", {})
    file = io.BytesIO()
    image.save(file, kind, exif=exif, icc_profile=PROFILE, dpi=(300, 300), **more)
    return file.getvalue(), ".png" if kind == "PNG" else ".tif"


def stored(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@some.composite
def masks(draw: Any, width: int, height: int) -> Any:
    """A mask in one of the ways to give it, with something to repaint and something to keep."""
    left, top = draw(some.integers(0, width - 1)), draw(some.integers(0, height - 1))
    right, bottom = draw(some.integers(left + 1, width)), draw(some.integers(top + 1, height))
    if (right - left, bottom - top) == (width, height):
        right, bottom = (right - 1, bottom) if width > 1 else (right, bottom - 1)
    box = (left, top, right, bottom)
    values = np.zeros((height, width), np.uint8)
    values[top:bottom, left:right] = 255
    kind = draw(some.sampled_from(["box", "boolean", "picture", "soft", "polygon", "several", "speckled"]))
    if kind == "boolean":
        return values > 0
    if kind == "picture":
        return Image.fromarray(values).convert(draw(some.sampled_from(["L", "RGB", "1", "RGBA"])))
    if kind == "soft":
        values[(values == 0)] = draw(some.sampled_from([0, 60, 140]))
        return Image.fromarray(values)
    if kind == "polygon" and right - left > 1 and bottom - top > 1 and width * height > 4:
        return [(left, top), (right - 1, top), (left, bottom - 1)]
    if kind == "several":
        return [box, values.astype(np.float32) / 255]
    if kind == "speckled":  # as a JPEG's
        noise = np.random.default_rng(0).integers(0, 10, values.shape)
        return Image.fromarray(np.where(values > 0, 255 - noise, noise).astype(np.uint8))
    return box


@some.composite
def requests(draw: Any) -> tuple[Image.Image, int, str, Any, dict[str, Any]]:
    width, height = draw(some.integers(1, 200)), draw(some.integers(1, 200))
    mode = draw(some.sampled_from(MODES))
    image = picture(mode, width, height, draw(some.integers(0, 1000)))
    orientation = draw(some.sampled_from([1, 1, 6, 3, 5]))
    if orientation >= 5:
        width, height = height, width
    verbs = ["inpaint", "erase", "outpaint"] if width * height > 1 else ["outpaint"]
    verb = draw(some.sampled_from(verbs))
    options: dict[str, Any] = {
        "seed": draw(some.integers(0, 2**40)),
        "join": draw(some.sampled_from(["plain", "match", "poisson"])),
        "feather": draw(some.sampled_from([None, 0, 0.5, 7.3, 40])),
        "context": draw(some.sampled_from(["50%", "0%", 0, 13, "200%"])),
        "strength": draw(some.sampled_from([1.0, 0.6])),
        "speed": draw(some.sampled_from(["exact", "exact", "balanced", "fast"])),
    }
    if draw(some.booleans()):
        options["fill"] = draw(some.sampled_from(["original", "noise", "color"]))
    if verb == "outpaint":
        sides = some.integers(0, 60)
        options |= {"left": draw(sides), "top": draw(sides), "right": draw(sides), "bottom": 1 + draw(sides)}
        return image, orientation, verb, None, options
    if draw(some.booleans()):
        options["grow"] = draw(some.sampled_from([0, 3, 1.5]))
    return image, orientation, verb, draw(masks(width, height)), options


def perform(editor: Editor, verb: str, photo: Any, mask: Any, options: dict[str, Any]) -> Edit | None:
    arguments = (photo,) if mask is None else (photo, mask)
    try:
        edit: Edit = getattr(editor, verb)(*arguments, **{**FAST, **options})
    except retouch.InputError as error:  # a mask that grew over all of a small photo
        assert "all white" in str(error) or "leaves none" in str(error)
        event("nothing would be kept")
        return None
    return edit


def may_change(edit: Edit, feather: float | None) -> np.ndarray:
    """The mask with its feathered edge."""
    levels = np.asarray(edit.mask)
    allowed = levels > 0
    away = distance_transform_edt(levels < 128) if (levels >= 128).any() else np.full(levels.shape, np.inf)
    for crop in edit.crops:
        width = max(1, 0.02 * max(crop.size)) if feather is None else feather
        crop.of(allowed)[:] |= crop.of(away) <= width
    return allowed


def check_kept(
    edit: Edit, content: bytes, suffix: str, options: dict[str, Any], feather: float | None, folder: Path
) -> None:
    """Check that the result and its file are the photo, changed only in the mask and its feather."""
    with Image.open(io.BytesIO(content)) as opened:
        before = ImageOps.exif_transpose(opened)
    if edit.settings["verb"] == "outpaint":
        margins = [options[side] for side in ("left", "top", "right", "bottom")]
        left, top, right, bottom = margins
        assert edit.image.size == (before.width + left + right, before.height + top + bottom)
        assert edit.settings["margins"] == margins
        area = (left, top, left + before.width, top + before.height)
    else:
        assert edit.image.size == before.size
        area = (0, 0, *before.size)
    assert edit.image.mode == before.mode
    kept = ~may_change(edit, feather)[area[1] : area[3], area[0] : area[2]]
    assert 0 <= edit.coverage <= 1 and edit.mask.size == edit.image.size
    hole = np.asarray(edit.mask.crop(area)) >= 128
    if before.mode == "RGB" and hole.sum() > 20:
        assert (stored(edit.image.crop(area)) != stored(before))[hole].any(axis=-1).mean() > 0.5
    path = edit.save(folder / f"result{suffix}")
    with Image.open(path) as saved:
        saved.load()
        for result in (edit.image, saved):
            assert result.mode == before.mode
            after = stored(result.crop(area))
            np.testing.assert_array_equal(after[kept], stored(before)[kept])
            if "A" in before.getbands():
                np.testing.assert_array_equal(after[..., -1], stored(before)[..., -1])
            if before.mode in ("P", "PA"):
                assert result.getpalette() == before.getpalette()
                assert result.info.get("transparency") == before.info.get("transparency")
        np.testing.assert_array_equal(stored(saved), stored(edit.image))
        assert saved.info["icc_profile"] == PROFILE
        assert saved.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert saved.getexif()[DESCRIPTION] == "a park"
        assert saved.getexif().get(ORIENTATION, 1) == 1
        if suffix == ".png":
            assert saved.text["Title"] == "a park"
            assert json.loads(saved.text["retouch"]) == edit.settings


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(some.sampled_from(["regular", "inpainting", "xl"]), requests())
def test_all_but_the_hole_comes_back_to_the_byte(
    editors: dict[str, Editor], tmp_path_factory: pytest.TempPathFactory, family: str, request: Any
) -> None:
    image, orientation, verb, mask, options = request
    content, suffix = as_file(image, orientation)
    edit = perform(editors[family], verb, content, mask, options)
    if edit is None:
        return
    check_kept(edit, content, suffix, options, options["feather"], tmp_path_factory.mktemp("saved"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests(), some.sampled_from(["patches", "patches", "telea", "noise"]))
def test_so_it_does_without_a_model(
    tmp_path_factory: pytest.TempPathFactory, request: Any, fill: str
) -> None:
    image, orientation, verb, mask, options = request
    applicable = {"seed", "grow", "feather", "left", "top", "right", "bottom"}
    options = {name: value for name, value in options.items() if name in applicable and value is not None}
    content, suffix = as_file(image, orientation)
    arguments = (content,) if verb == "outpaint" else (content, mask)
    fills = filling.outpaint if verb == "outpaint" else filling.erase
    try:
        edit = fills(*arguments, **options, fill=fill)
        again = fills(*arguments, **options, fill=fill)
    except retouch.InputError as error:  # of a small photo, or one that is all hole
        assert error.parameter in ("mask", "photo", "fill")
        event(f"refused: {error.parameter}")
        return
    if fill != "telea":  # OpenCV's differs by a level from call to call in the smallest photos
        assert edit.image.tobytes() == again.image.tobytes()
    check_kept(edit, content, suffix, options, options.get("feather", 0), tmp_path_factory.mktemp("filled"))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    some.sampled_from(["regular", "inpainting"]),
    some.integers(0, 2**32),
    some.sampled_from(["euler a", "dpm++ 2m karras", "lcm", None]),
    some.sampled_from(["original", "noise"]),
    some.integers(2, 3),
)
def test_variations_do_not_depend_on_each_other(
    editors: dict[str, Editor], family: str, seed: int, scheduler: str | None, fill: str, count: int
) -> None:
    photo = picture("RGB", 90, 70, 1)
    options = {**FAST, "steps": 2, "scheduler": scheduler, "fill": fill, "strength": 0.8}
    holes = [(5, 5, 15, 20), (70, 50, 80, 60)]
    together = editors[family].inpaint(photo, holes, "a cat", seed=seed, variations=count, **options)
    assert together.seeds == [seed + index for index in range(count)]
    for index, found in enumerate(together.images):
        alone = editors[family].inpaint(photo, holes, "a cat", seed=seed + index, **options)
        np.testing.assert_array_equal(stored(found), stored(alone.image))
        assert alone.seam == together.seams[index]
    assert (stored(together.images[0]) != stored(together.images[1])).any()


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests(), some.sampled_from(["regular", "inpainting", "xl"]))
def test_the_settings_repeat_the_edit(editors: dict[str, Editor], request: Any, family: str) -> None:
    image, orientation, verb, mask, options = request
    options.pop("seed")  # drawn at random, and in the settings
    content, _ = as_file(image, orientation)
    edit = perform(editors[family], verb, content, mask, options)
    if edit is None:
        return
    settings = json.loads(json.dumps(edit.settings))
    known = {name: settings[name] for name in Options.__dataclass_fields__ if name in settings}
    if verb == "outpaint":
        known |= dict(zip(("left", "top", "right", "bottom"), settings["margins"], strict=True))
    again = perform(editors[family], settings["verb"], content, mask, known)
    assert again is not None and again.seed == edit.seed
    np.testing.assert_array_equal(stored(again.image), stored(edit.image))


@pytest.mark.parametrize("family", ["regular", "inpainting", "xl"])
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (3, 1.0), (3, 0.7), (2, 0.35), (1, 0.05)])
def test_as_many_steps_run_as_were_asked_for(
    editors: dict[str, Editor], family: str, steps: int, strength: float
) -> None:
    photo, told = picture("L", 60, 60, 1), []
    editors[family].inpaint(
        photo,
        (20, 20, 30, 30),
        size=64,
        steps=steps,
        strength=strength,
        progress=lambda update: told.append((update.step, update.steps)),
    )
    assert told[-1] == (steps, steps) and told[0][0] == 1 and told == sorted(told)
    assert sorted({step for step, _ in told}) == list(range(1, steps + 1))


@pytest.mark.parametrize("scheduler", sampler_names())
def test_every_sampler_runs_the_steps(editors: dict[str, Editor], scheduler: str) -> None:
    told: list[int] = []
    editors["regular"].inpaint(
        picture("L", 60, 60, 1),
        (20, 20, 30, 30),
        size=64,
        steps=4,
        strength=0.6,
        scheduler=scheduler,
        progress=lambda update: told.append(update.step),
    )
    assert list(dict.fromkeys(told)) == [1, 2, 3, 4]


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(some.integers(1, 6), some.booleans())
def test_an_edit_can_be_cancelled_at_any_step(editors: dict[str, Editor], after: int, large: bool) -> None:
    editor, photo, told = editors["inpainting"], picture("RGB", 120, 120, 1), []
    hole = (10, 10, 110, 110) if large else (40, 40, 60, 60)
    options = {**FAST, "steps": 3, "variations": 3, "seed": 1}

    def listen(update: Any) -> bool:
        told.append(update)
        return len(told) < after

    with pytest.raises(retouch.Cancelled, match="cancelled at step"):
        editor.inpaint(photo, hole, progress=listen, **options)
    assert len(told) == after
    first = editor.inpaint(photo, hole, **options)
    np.testing.assert_array_equal(
        stored(first.image), stored(editor.inpaint(photo, hole, **{**options, "variations": 1}).image)
    )


def test_progress_tells_where_an_edit_stands(editors: dict[str, Editor]) -> None:
    told: list[Any] = []
    holes = [(5, 5, 15, 15), (180, 180, 190, 190)]
    edit = editors["xl"].inpaint(
        picture("RGB", 200, 200, 1), holes, size=64, steps=2, variations=2, progress=told.append
    )
    assert len(edit.crops) == 2
    places = [(each.variation, each.crop, each.step) for each in told]
    assert places == [(v, c, s) for v in (1, 2) for c in (1, 2) for s in (1, 2)]
    assert {(each.variations, each.crops, each.steps) for each in told} == {(2, 2, 2)}
    assert told[-1].preview().size == (edit.crops[1].width, edit.crops[1].height)


def test_threads_on_one_editor_do_not_disturb_each_other(editors: dict[str, Editor]) -> None:
    editor, photo = editors["inpainting"], picture("RGB", 150, 100, 4)
    jobs: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": 1, "scheduler": "euler a"},
        {"prompt": "a castle", "seed": 2, "strength": 0.5, "feather": 0},
        {"prompt": "a cat", "seed": 3, "fill": "telea"},
    ]
    hole = (30, 20, 90, 60)
    alone = [stored(editor.inpaint(photo, hole, **{**FAST, "steps": 3, **job}).image) for job in jobs]
    fresh = Editor(editor.pipeline, show_progress=False)
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        edit = fresh.inpaint(photo, hole, **{**FAST, "steps": 3, **jobs[index % 3]})
        found[index] = stored(edit.image)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(6):
        np.testing.assert_array_equal(found[index], alone[index % 3])


def test_a_photo_on_its_side_is_edited_upright(editors: dict[str, Editor]) -> None:
    """The mask is in the coordinates in which the photo is seen."""
    upright = picture("RGB", 120, 80, 2)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned = editors["regular"].inpaint(file.getvalue(), (90, 10, 110, 30), **FAST, seed=5)
    plain = editors["regular"].inpaint(upright, (90, 10, 110, 30), **FAST, seed=5)
    np.testing.assert_array_equal(stored(turned.image), stored(plain.image))
    changed = (stored(turned.image) != stored(upright)).any(axis=-1)
    assert changed[10:30, 90:110].mean() > 0.9


@pytest.mark.parametrize("large", [False, True])
def test_saved_as_jpeg_with_a_note(editors: dict[str, Editor], tmp_path: Path, large: bool) -> None:
    photo = picture("CMYK" if large else "RGB", 40, 40, 1)
    edit = editors["regular"].inpaint(photo, (5, 5, 20, 20), **FAST)
    with pytest.warns(UserWarning, match=r"JPEG compresses the whole picture again.*\.png"):
        path = edit.save(tmp_path / "result.jpg")
    with Image.open(path) as saved:
        assert saved.format == "JPEG" and saved.mode == photo.mode


def test_a_cached_editor_gives_what_a_fresh_one_gives(editors: dict[str, Editor]) -> None:
    photo, hole = picture("RGB", 150, 100, 4), (30, 20, 90, 60)
    for editor in editors.values():
        fresh: Callable[[], Editor] = lambda pipeline=editor.pipeline: Editor(pipeline, show_progress=False)  # noqa: E731
        used = fresh()
        for prompt, seed in (("a cat", 1), ("a castle", 1), ("a cat", 2), ("a cat", 1)):
            options = {**FAST, "steps": 2, "seed": seed, "negative_prompt": "a bench"}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                kept, new = (each.inpaint(photo, hole, prompt, **options).image for each in (used, fresh()))
            np.testing.assert_array_equal(stored(kept), stored(new))
