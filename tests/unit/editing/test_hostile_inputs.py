"""Hostile inputs: each is refused with a clear message before the model runs, or works."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from refusals import refuses

import retouch
from retouch.editing.editor import Editor
from retouch.errors import InputError

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
HOLE = (30, 20, 50, 40)
FAST: dict[str, Any] = {"steps": 1, "size": 64, "seed": 1}


@pytest.fixture(scope="module")
def editor(tiny_sd_inpaint: Path) -> Editor:
    return retouch.load(tiny_sd_inpaint, device="cpu", dtype="float32", progress=False)


@pytest.fixture
def refusing(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """An editor whose model must not be reached."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was reached")

    monkeypatch.setattr(type(editor.pipeline), "start", start)
    return editor


def encoded(kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, data: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG whose header may contradict its data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunk(name, content) for name, content in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + body
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200
BROKEN = {
    "truncated PNG": encoded()[: len(encoded()) // 2],
    "truncated JPEG": encoded("JPEG")[:700],
    "truncated WebP": encoded("WEBP", lossless=True)[:700],
    "truncated TIFF": encoded("TIFF")[:700],
    "PNG without its data": png_of(80, 60),
    "PNG that is larger than its data": png_of(4000, 3000, b"\0" * 1000),
    "PNG of no size": png_of(0, 60),
    "PNG with a text bomb": png_of(8, 8, b"", (b"zTXt", b"a\0\0" + zlib.compress(b"a" * (2**26)))),
    "decompression bomb": png_of(60000, 60000),
    "HEIC without a decoder": HEIC,
    "words": b"this is no picture",
    "nothing": b"",
    "zeros": b"\0" * 5000,
    "a web page": b"<!doctype html><html><body>not found</body></html>",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("which", ["photo", "mask"])
@pytest.mark.parametrize("way", ["bytes", "path"])
def test_broken_files(refusing: Editor, tmp_path: Path, name: str, which: str, way: str) -> None:
    given: Any = BROKEN[name]
    if way == "path":
        given = tmp_path / "given.png"
        given.write_bytes(BROKEN[name])
    facts = ["too many pixels", 60000 * 60000] if name == "decompression bomb" else ["cannot be read"]
    facts += ["pillow-heif"] if name.startswith("HEIC") else []
    with refuses(which, *facts):
        refusing.inpaint(
            **({"photo": given, "mask": HOLE} if which == "photo" else {"photo": PHOTO, "mask": given})
        )


def test_a_picture_under_a_wrong_ending_is_a_picture(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded("PNG"))
    assert editor.inpaint(tmp_path / "photo.jpg", HOLE, **FAST).image.size == (80, 60)


@pytest.mark.parametrize("which", ["photo", "mask"])
@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ("folder", "folder"),
        ("nowhere.png", "nowhere.png"),
        ("x" * 5000, "xxx"),
        ("http://127.0.0.1:9/photo.png", "http://127.0.0.1:9/photo.png"),
        ("http://", "http://"),
        ("data:image/png;base64,????", "data:"),
        (3, "int"),
        (None, "NoneType"),
        (io.StringIO("text"), "text"),
    ],
)
def test_sources_that_hold_no_picture(
    refusing: Editor, tmp_path: Path, which: str, given: Any, fact: str
) -> None:
    given = str(tmp_path) if given == "folder" else given
    with refuses(which, fact):
        refusing.inpaint(
            **({"photo": given, "mask": HOLE} if which == "photo" else {"photo": PHOTO, "mask": given})
        )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(refusing: Editor, kind: str) -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    with refuses("photo", "animation", "2 pictures", "seek"):
        refusing.inpaint(file.getvalue(), HOLE)


@pytest.mark.parametrize(
    ("mask", "parameter", "facts"),
    [
        (Image.new("L", (80, 60)), "mask", ["empty", "invert=True"]),
        (Image.new("L", (80, 60), 255), "mask", ["all white", "invert=True"]),
        (Image.new("RGBA", (80, 60), (9, 9, 9, 90)), "mask_mode", ["alpha", "'luma'", "'alpha'"]),
        (np.full((60, 80), np.nan), "mask", ["NaN"]),
        (np.zeros((80, 60)), "mask", ["60x80", "80x60"]),
        (Image.new("L", (10, 10), 255), "mask", ["10x10", "80x60", "fit_mask=True"]),
    ],
)
def test_masks(refusing: Editor, mask: Any, parameter: str, facts: list[str]) -> None:
    for verb in (refusing.inpaint, refusing.erase):
        with refuses(parameter, *facts):
            verb(PHOTO, mask)


@pytest.mark.parametrize(
    "photo",
    [
        np.full((60, 80, 3), np.nan),
        np.zeros((60, 80, 3)),
        Image.fromarray(np.full((60, 80), np.nan, np.float32)),
        Image.fromarray(np.full((60, 80), np.inf, np.float32)),
        np.zeros((60, 80, 7), np.uint8),
        np.zeros((0, 80, 3), np.uint8),
        Image.new("RGB", (0, 5)),
    ],
    ids=lambda photo: type(photo).__name__,
)
def test_photos_of_no_colours(refusing: Editor, photo: Any) -> None:
    with refuses("photo"):
        refusing.inpaint(photo, HOLE)


@pytest.mark.parametrize(
    ("parameter", "value", "fact"),
    [
        ("scheduler", "dpm", "dpm"),
        ("context", "wide", "wide"),
        ("join", "glue", "glue"),
        ("record", 3, "int"),
        ("stepz", 3, "steps"),
        ("source", (0, 0, 20, 20), "without a model"),
    ],
)
def test_options_are_refused_before_the_model_runs(
    refusing: Editor, parameter: str, value: Any, fact: str
) -> None:
    with refuses(parameter, fact):
        refusing.inpaint(PHOTO, HOLE, **{parameter: value})


@pytest.mark.parametrize(
    ("size", "hole"),
    [
        ((1, 10000), (0, 5000, 1, 5040)),
        ((10000, 1), (10, 0, 9000, 1)),
        ((2, 1), (0, 0, 1, 1)),
        ((3, 3), (1, 1, 2, 2)),
    ],
)
def test_pictures_like_threads_and_dots(editor: Editor, size: tuple[int, int], hole: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for verb in (editor.inpaint, editor.erase):
        try:
            edit = verb(values, hole, **FAST)
        except InputError as error:  # grown over all of it
            assert error.parameter in ("mask", "strength")
            continue
        assert edit.image.size == size
        changed = (np.asarray(edit.image) != values).any(axis=-1)
        assert changed.any() and changed.sum() <= (hole[2] - hole[0] + 1200) * (hole[3] - hole[1] + 1200)


def test_one_pixel(editor: Editor) -> None:
    dot = np.full((1, 1, 3), 200, np.uint8)
    for mask in ((0, 0, 1, 1), np.ones((1, 1), bool)):
        with refuses("mask", "all white"):
            editor.inpaint(dot, mask, **FAST)
    assert editor.outpaint(dot, left=3, bottom=5, **FAST).image.size == (4, 6)


def test_a_prompt_of_ten_thousand_characters(editor: Editor) -> None:
    words = "a castle in the park " * 500
    with pytest.warns(UserWarning, match=r"longer than the 77 tokens.*cut off"):
        edit = editor.inpaint(PHOTO, HOLE, words[:10000], **FAST)
    assert edit.settings["prompt"] == words[:10000]
    assert editor.inpaint(PHOTO, HOLE, "\x00\uffff🦆" * 3, **FAST).image.size == (80, 60)


def test_text_chunks_of_any_kind_come_back(editor: Editor, tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "of another program")
    text.add_text("k" * 79, "\n\t" + "é" * 1000)
    path = editor.inpaint(encoded(pnginfo=text), HOLE, "🦆", **FAST).save(tmp_path / "result.png")
    with Image.open(path) as saved:
        saved.load()
        assert saved.text["k" * 79] == "\n\t" + "é" * 1000
        assert saved.text["parameters"].startswith("🦆\nSteps: 1")


def test_a_hundred_megapixels_take_bounded_memory(tiny_sd_inpaint: Path, tmp_path: Path) -> None:
    """Photo and result take 8 bytes a pixel in Pillow, the mask 4 or 5; all else is of the crop's size."""
    Image.new("RGB", (10_000, 10_000), "teal").save(tmp_path / "photo.png", compress_level=1)
    code = """
import resource, sys, torch, retouch
torch.set_num_threads(1)
from PIL import Image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
editor = retouch.load(sys.argv[1], device="cpu", dtype="float32", progress=False)
editor.inpaint(Image.new("RGB", (90, 90)), (40, 40, 60, 60), steps=1, size=64)
before = peak()
edit = editor.inpaint(sys.argv[2], (5000, 5000, 5060, 5040), steps=1, size=64)
edit.save(sys.argv[3])
print(edit.image.size, edit.crop, peak() - before)
"""
    arguments = [str(tiny_sd_inpaint), str(tmp_path / "photo.png"), str(tmp_path / "result.png")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    size, crop, taken = eval(f"({done.stdout.strip().replace(') ', '), ')})")
    assert size == (10_000, 10_000) and crop[2] - crop[0] < 200
    assert taken < 1.5e9
