"""A photo keeps everything that a model does not paint, in every mode and format."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from retouch.errors import InputError
from retouch.images.photo import Photo, check_holds

BOX = (3, 2, 9, 8)


def noise(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def make(mode: str) -> Image.Image:
    if mode in ("P", "PA"):
        indexed = Image.fromarray(noise(12, 15).astype(np.uint8)).convert("P")
        indexed.putpalette(noise(768, seed=1).astype(np.uint8).tobytes())
        return indexed.convert(mode)
    if mode == "1":
        return Image.fromarray(noise(12, 15) > 127)
    if mode in ("I", "I;16"):
        return Image.fromarray(noise(12, 15, high=65536).astype("u2" if mode == "I;16" else "i4"))
    if mode == "F":
        return Image.fromarray(noise(12, 15).astype(np.float32) / 255)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (15, 12), noise(12, 15, 4).astype(np.uint8).tobytes())
    values = noise(12, 15, len(mode)).astype(np.uint8)
    return Image.fromarray(values[..., 0] if mode == "L" else values)


# What pure red, in the middle of the patch, becomes.
RED = {
    "RGB": (255, 0, 0),
    "RGBA": (255, 0, 0),
    "L": 76,
    "LA": 76,
    "I;16": 76 * 257,
    "I": 76 * 257,
    "F": 76 / 255,
    "1": False,
    "CMYK": (0, 255, 255, 0),
}


@pytest.mark.parametrize("mode", [*RED, "P", "PA"])
def test_a_patch_is_put_into_the_photos_own_mode(mode: str) -> None:
    photo = Photo.open(make(mode))
    where = np.zeros((6, 6), bool)
    where[1:4, 2:5] = True
    painted = np.broadcast_to(np.array([255, 0, 0], np.uint8), (6, 6, 3))
    result = photo.with_painted([(BOX, painted, where)])
    assert (result.mode, result.size) == (mode, (15, 12))
    before, after = np.asarray(make(mode)), np.asarray(result)
    changed = np.zeros((12, 15), bool)
    changed[3:6, 5:8] = True
    np.testing.assert_array_equal(after[~changed], before[~changed])
    if mode in ("RGBA", "LA", "PA"):
        np.testing.assert_array_equal(after[..., -1], before[..., -1])
    if mode in RED:
        colours = after[..., :3] if mode == "RGBA" else after[..., 0] if mode == "LA" else after
        np.testing.assert_allclose(colours[changed], np.broadcast_to(RED[mode], colours[changed].shape))
    else:
        assert result.getpalette() == photo.image.getpalette()
        palette = np.array(result.getpalette()).reshape(-1, 3)
        nearest = np.abs(palette - [255, 0, 0]).__pow__(2).sum(1).argmin()
        index = after[..., 0] if mode == "PA" else after
        assert (palette[index[changed]] == palette[nearest]).all()


@pytest.mark.parametrize("key", [7, bytes([0] * 7 + [255] * 249)])
def test_what_is_transparent_is_never_the_nearest_colour(key: Any) -> None:
    indexed = make("P")
    palette = indexed.getpalette()
    assert palette is not None
    indexed.info["transparency"] = key
    hidden = np.array(palette[21:24] if key == 7 else palette[:3], np.uint8)
    result = Photo.open(indexed).with_painted([(BOX, np.tile(hidden, (6, 6, 1)), np.ones((6, 6), bool))])
    part = np.asarray(result)[2:8, 3:9]
    assert len(set(part.flat)) == 1 and (part[0, 0] != 7 if key == 7 else part[0, 0] >= 7)
    assert result.info["transparency"] == key


@pytest.mark.parametrize("mode", [*RED, "P", "PA"])
def test_the_pixels_of_a_part_are_those_of_the_whole(mode: str) -> None:
    photo = Photo.open(make(mode))
    np.testing.assert_array_equal(photo.pixels(BOX), photo.rgb[2:8, 3:9])
    assert photo.rgb.shape == (12, 15, 3) and photo.rgb.dtype == np.uint8
    reference = {"I;16": noise(12, 15, high=65536) / 257, "F": noise(12, 15)}.get(mode)
    if reference is not None:
        np.testing.assert_array_equal(photo.rgb[..., 0], np.rint(reference))


def test_a_dark_part_of_a_deep_photo_has_the_photos_scale() -> None:
    values = np.full((10, 20), 100, np.int32)
    values[:, 10:] = 40000
    photo = Photo.open(Image.fromarray(values))
    assert photo.pixels((0, 0, 5, 5)).max() == round(100 / 257)


@pytest.mark.parametrize("mode", [*RED, "P", "PA"])
def test_a_larger_canvas(mode: str) -> None:
    given = make(mode)
    given.info["dpi"] = (72, 72)
    photo, new = Photo.open(given).extended(2, 0, 3, 4)
    assert photo.size == (20, 16) and photo.image.mode == mode and photo.image.info["dpi"] == (72, 72)
    assert new.sum() == 20 * 16 - 15 * 12
    np.testing.assert_array_equal(np.asarray(photo.image.crop((2, 0, 17, 12))), np.asarray(make(mode)))
    if mode in ("RGBA", "LA", "PA"):
        assert (np.asarray(photo.image.getchannel("A"))[new] == 255).all(), "what is painted is to be seen"
    if mode in ("P", "PA"):
        assert photo.image.getpalette() == given.getpalette()


def test_a_canvas_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"2550 pixels. At most 2000.*MAX_IMAGE_PIXELS"):
        Photo.open(make("L")).extended(35, 39, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", [1, 8])
@pytest.mark.filterwarnings("ignore:.*compresses the whole picture again")
def test_a_files_metadata_comes_back(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[270] = "a park"
    exif[274] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="park"/></x:xmpmeta>'
    options: dict[str, Any] = {"exif": exif, "icc_profile": b"profile" * 20, "dpi": (300, 300)}
    if suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Title", "Käse")
        text.add_text("Description", "日本")
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"] = text
    elif suffix == ".tif":
        del options["exif"]  # Pillow takes either
        options["tiffinfo"] = {700: xmp, 270: "a park", 274: orientation}
    else:
        options |= {"xmp": xmp, "comment": b"by hand"}
    make("RGB").save(tmp_path / f"given{suffix}", **options)
    photo = Photo.open(tmp_path / f"given{suffix}")
    assert photo.size == ((15, 12) if orientation == 1 else (12, 15))
    with Image.open(photo.save(photo.image, tmp_path / f"result{suffix}")) as saved:
        saved.load()
        assert saved.size == photo.size
        found = saved.getexif()
        assert found[270] == "a park" and found.get(274, 1) == 1
        if suffix != ".tif":  # Pillow writes no sub-directories into TIFF here
            assert found.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05" and found.get_ifd(0x8825)[1] == "N"
        assert saved.info["icc_profile"] == b"profile" * 20
        if suffix == ".tif":
            assert saved.tag_v2[700] == xmp
        if suffix in (".png", ".jpg", ".tif"):
            assert saved.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        if suffix == ".jpg":
            assert saved.info["comment"] == b"by hand" and saved.info["xmp"] == xmp
        if suffix == ".webp":
            assert saved.info["xmp"] == xmp
        if suffix == ".png":
            assert saved.text["Title"] == "Käse" and saved.text["Description"] == "日本"
            assert saved.text["XML:com.adobe.xmp"] == xmp.decode()


def test_a_jpegs_xmp_goes_into_a_png(tmp_path: Path) -> None:
    make("RGB").save(tmp_path / "given.jpg", xmp=b"<x:xmpmeta/>")
    photo = Photo.open(tmp_path / "given.jpg")
    with Image.open(photo.save(photo.image, tmp_path / "result.png", text={"parameters": "a cat"})) as saved:
        saved.load()
        assert saved.text == {"XML:com.adobe.xmp": "<x:xmpmeta/>", "parameters": "a cat"}


@pytest.mark.parametrize("mode", [*RED, "P", "PA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".bmp", ".tga", ".gif"])
@pytest.mark.filterwarnings("ignore:.*compresses the whole picture again")
def test_a_format_holds_a_mode_as_it_is_or_refuses_it(tmp_path: Path, mode: str, suffix: str) -> None:
    photo, target = Photo.open(make(mode)), tmp_path / f"result{suffix}"
    try:
        photo.save(photo.image, target)
    except InputError as error:
        assert f"cannot hold a picture of mode {mode}" in str(error) and not target.exists()
        assert ".tif" in str(error) and "can; or convert" in str(error)
        return
    with Image.open(target) as saved:
        saved.load()
        assert saved.mode == mode
        if suffix not in (".webp", ".jpg"):
            before = photo.image.convert("RGB") if suffix == ".gif" else photo.image
            after = saved.convert("RGB") if suffix == ".gif" else saved
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.parametrize("name", ["result", "result.xyz", "result.psd", "result.pdf", "result.heic"])
def test_names_without_a_usable_ending(tmp_path: Path, name: str) -> None:
    photo = Photo.open(make("RGB"))
    with pytest.raises(InputError, match=r"no ending that names.*\.png"):
        photo.save(photo.image, tmp_path / name)
    with pytest.raises(InputError, match="no ending"):
        check_holds(tmp_path / name, "RGB")
    assert not list(tmp_path.iterdir())


def test_quality(tmp_path: Path) -> None:
    photo = Photo.open(Image.fromarray(noise(80, 90, 3).astype(np.uint8)))
    sizes = []
    for quality in (10, 95, None):
        with pytest.warns(UserWarning, match="JPEG compresses the whole picture again"):
            sizes.append(photo.save(photo.image, tmp_path / "result.jpg", quality=quality).stat().st_size)
    assert sizes[0] < sizes[1] == sizes[2]
    with pytest.raises(InputError, match=r"quality=90 .*result.png"):
        photo.save(photo.image, tmp_path / "result.png", quality=90)
    with pytest.raises(InputError, match="quality=101"), pytest.warns(UserWarning):
        photo.save(photo.image, tmp_path / "result.jpg", quality=101)


class TestNothingHalfWritten:
    def save(self, folder: Path, image: Image.Image | None = None) -> None:
        photo = Photo.open(make("RGB") if image is None else image)
        photo.save(photo.image, folder / "result.png")

    @pytest.mark.parametrize("there", [False, True])
    @pytest.mark.parametrize(
        ("failure", "expected"),
        [
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), InputError),
            (OSError("encoder error -2"), InputError),
            (ValueError("EXIF data is too long"), InputError),
            (KeyboardInterrupt(), KeyboardInterrupt),
            (MemoryError(), MemoryError),
        ],
        ids=["disk full", "encoder", "metadata", "Ctrl-C", "memory"],
    )
    def test_on_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, expected: Any, there: bool
    ) -> None:
        if there:
            (tmp_path / "result.png").write_bytes(b"old")

        def fail_midway(self: Any, file: Any, *_: Any, **__: Any) -> None:
            file.write(b"half of it")
            raise failure

        monkeypatch.setattr(Image.Image, "save", fail_midway)
        with pytest.raises(expected) as caught:
            self.save(tmp_path)
        if expected is InputError:
            assert "no partial file was left" in str(caught.value)
        left = list(tmp_path.iterdir())
        assert left == ([tmp_path / "result.png"] if there else [])
        assert not there or left[0].read_bytes() == b"old"

    def test_a_full_disk(self, tmp_path: Path) -> None:
        mounted = tmp_path / "small"
        mounted.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small file system takes rights that this user lacks")
        try:
            with pytest.raises(InputError, match=r"cannot be written \(No space left"):
                self.save(mounted, Image.fromarray(noise(300, 300, 3).astype(np.uint8)))
            assert not list(mounted.iterdir())
        finally:
            subprocess.run(["umount", mounted], check=True)

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
    def test_a_file_size_limit(self, tmp_path: Path) -> None:
        """As a disk quota, by the process's own limit, which holds for any user."""
        code = (
            "import resource, signal, sys, numpy as np; from PIL import Image\n"
            "from retouch.images.photo import Photo\n"
            "from retouch.errors import InputError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "photo = Photo.open(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))\n"
            "try: photo.save(photo.image, sys.argv[1])\n"
            "except InputError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "result.png"], capture_output=True, text=True, check=True
        )
        assert "cannot be written (File too large)" in done.stdout and not list(tmp_path.iterdir())

    def test_a_folder_that_may_not_be_written_to(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            if os.access(tmp_path, os.W_OK):
                pytest.skip("this user may write anywhere")
            with pytest.raises(InputError, match=r"cannot be written \(Permission denied"):
                self.save(tmp_path)
        finally:
            tmp_path.chmod(0o700)

    def test_a_folder_that_is_not_there_or_is_the_target(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot be written \(No such file"):
            self.save(tmp_path / "nowhere")
        (tmp_path / "result.png").mkdir()
        with pytest.raises(InputError, match=r"cannot be written \(Is a directory"):
            self.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["result.png"]

    def test_a_new_file_has_the_usual_rights(self, tmp_path: Path) -> None:
        self.save(tmp_path)
        (tmp_path / "other").write_bytes(b"")
        assert (tmp_path / "result.png").stat().st_mode == (tmp_path / "other").stat().st_mode


class TestOpening:
    def test_animations_and_pages(self, tmp_path: Path) -> None:
        frames = [make("L"), make("L").rotate(180)]
        for suffix in ("gif", "png", "tif", "webp"):
            path = tmp_path / f"two.{suffix}"
            frames[0].save(path, save_all=True, append_images=frames[1:])
            with pytest.raises(InputError, match=r"2 pictures. One is accepted.*seek"):
                Photo.open(path)
        with Image.open(tmp_path / "two.gif") as opened:
            opened.seek(1)
            assert Photo.open(opened.copy()).size == (15, 12)

    def test_a_phones_jpeg_with_a_preview_behind_it(self, tmp_path: Path) -> None:
        make("RGB").save(
            tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[make("RGB").resize((4, 3))]
        )
        photo = Photo.open(tmp_path / "phone.jpg")
        assert photo.size == (15, 12) and photo.format == "MPO"

    def test_big_endian_16_bit(self) -> None:
        values = noise(5, 6, high=65536).astype(">u2")
        photo = Photo.open(Image.frombytes("I;16B", (6, 5), values.tobytes()))
        assert photo.image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(photo.image), values)

    @pytest.mark.parametrize(
        ("suffix", "shape"), [(".png", (5, 6, 3)), (".png", (5, 6, 4)), (".tif", (5, 6, 3))]
    )
    def test_16_bits_for_each_colour_are_told_to_become_8(
        self, tmp_path: Path, suffix: str, shape: tuple[int, ...]
    ) -> None:
        cv2.imwrite(str(tmp_path / f"deep{suffix}"), noise(*shape, high=65536).astype(np.uint16))
        with pytest.warns(UserWarning, match="16 bits for each colour, but only 8 are read"):
            assert Photo.open(tmp_path / f"deep{suffix}").size == (6, 5)
        cv2.imwrite(str(tmp_path / f"grey{suffix}"), noise(5, 6, high=65536).astype(np.uint16))
        assert Photo.open(tmp_path / f"grey{suffix}").image.mode == "I;16"

    @pytest.mark.parametrize("mode", ["HSV", "YCbCr", "LAB", "RGBX"])
    def test_modes_of_no_photo(self, mode: str) -> None:
        with pytest.raises(InputError, match=f"mode {mode}. Accepted are RGB"):
            Photo.open(Image.new(mode, (4, 4)))

    @pytest.mark.parametrize(
        "values",
        [
            np.full((4, 4), np.nan, np.float32),
            np.array([[-1.0, 2.0]], np.float32),
            np.array([[-5, 300]], np.int32),
            np.array([[0, 70000]], np.int32),
        ],
    )
    def test_deep_values_that_mean_nothing(self, values: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"photo has mode .* Accepted are finite values"):
            Photo.open(Image.fromarray(values))

    @pytest.mark.parametrize(
        "values",
        [
            np.zeros((4, 4, 3)),
            np.zeros((4, 4, 2), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
            np.zeros(4, np.uint8),
        ],
    )
    def test_arrays_of_another_kind(self, values: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"photo is an array of .* Accepted are 8-bit arrays"):
            Photo.open(values)

    def test_a_photo_opens_as_itself(self) -> None:
        photo = Photo.open(noise(4, 5, 3).astype(np.uint8))
        assert Photo.open(photo) is photo and photo.size == (5, 4)

    def test_the_given_picture_is_not_changed(self) -> None:
        given = make("RGB")
        exif = given.getexif()
        exif[274] = 6
        given.info["exif"] = exif.tobytes()
        file = io.BytesIO()
        given.save(file, "PNG", exif=exif)
        with Image.open(file) as opened:
            photo = Photo.open(opened)
            assert photo.size == (12, 15) and opened.size == (15, 12) and opened.getexif()[274] == 6
