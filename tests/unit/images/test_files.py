from __future__ import annotations

import base64
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest
from PIL import Image

from retouch.errors import InputError
from retouch.images import files
from retouch.images.files import load_image, make_image_grid

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(picture: Image.Image = PICTURE, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded()


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = unquote(self.path)
        if path == "/moved":
            self.reply(302, b"", Location="/fine.png")
        elif path == "/missing.png":
            self.reply(404, b"no such picture")
        elif path == "/page.html":
            self.reply(200, b"<html>a page</html>")
        elif path == "/cut.png":
            self.reply(200, PNG[:300], length=len(PNG))
        elif path == "/cut-unannounced.png":
            self.reply(200, PNG[:300], length=None)
        elif path == "/huge.png":
            self.reply(200, PNG, length=10**12)
        elif path in ("/endless.png", "/dripping.png"):
            self.reply(200, b"", length=None)
            self.keep_sending(64 * 1024 if path == "/endless.png" else 1)
        elif path == "/silent.png":
            self.server.released.wait(5)
        elif path == "/rubbish":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        else:
            agent = self.headers["User-Agent"] == "retouch"
            self.reply(200 if agent and path in ("/fine.png", "/ä b.png") else 403, PNG)

    def reply(self, status: int, body: bytes, length: int | None = -1, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        self.end_headers()
        self.wfile.write(body)

    def keep_sending(self, size: int) -> None:
        end = time.monotonic() + 5  # long enough, and a broken limit fails its test instead of hanging it
        try:
            while time.monotonic() < end and not self.server.released.wait(0.001):
                self.wfile.write(bytes(size))
                self.server.sent += size
        except OSError:
            pass  # the other side has closed the connection

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.released, server.sent = threading.Event(), 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(source: object, **options) -> str:
    """Return the message, after checking its three parts: what was given, what is accepted, what to do."""
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert "ccepted" in message
    assert len(message.split(". ")) >= 3, message
    assert len(message) < 700
    return message


def same(ours: Image.Image, expected: Image.Image = PICTURE) -> bool:
    return ours.mode == expected.mode and ours.size == expected.size and ours.tobytes() == expected.tobytes()


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    sources = [str(path), path, PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), PICTURE]
    sources += ["data:image/png;base64," + base64.b64encode(PNG).decode(), "data:image/png," + quote(PNG)]
    for source in sources:
        assert same(load_image(source))
    with path.open("rb") as file:
        assert same(load_image(file))


def test_what_comes_out_is_independent_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    loaded, kept = load_image(path), load_image(path, convert_method=lambda image: image)
    path.unlink()
    copied = load_image(PICTURE)
    copied.putpixel((0, 0), (1, 2, 3))
    assert same(loaded) and same(kept) and copied.getpixel((0, 0)) != PICTURE.getpixel((0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # From the EXIF standard: where the stored row 0 and column 0 are seen.
    seen = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    loaded = load_image(encoded(exif=exif))
    np.testing.assert_array_equal(np.asarray(loaded), seen[orientation](np.asarray(PICTURE)))
    assert same(load_image(loaded), loaded)


def test_odd_modes_become_plain_rgb() -> None:
    levels = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    deep = Image.fromarray(levels)
    for kind in "PNG", "TIFF":
        loaded = load_image(encoded(deep, kind))
        assert loaded.mode == "RGB"
        assert np.asarray(loaded)[0, :, 1].tolist() == [0, 1, 128, 255]
    assert np.asarray(load_image(Image.fromarray(levels.astype(np.int32))))[0, :, 0].tolist() == [
        0,
        1,
        128,
        255,
    ]
    fractions = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert np.asarray(load_image(encoded(fractions, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    for mode in "1", "L", "LA", "P", "RGBA", "CMYK":
        given = PICTURE.convert(mode)
        assert same(load_image(given), given.convert("RGB"))


def test_transparency_is_dropped_without_a_trace() -> None:
    clear = PICTURE.copy()
    clear.putalpha(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)))
    assert same(load_image(encoded(clear)))
    palette = PICTURE.quantize(8)
    loaded = load_image(encoded(palette, transparency=bytes(range(8))))  # Pillow alone warns about this one
    assert same(loaded, palette.convert("RGB"))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    assert "is neither a file nor" in refusal(str(tmp_path / "nothing.png"))
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor" in refusal(tmp_path / "pipe")
    empty, text, cut, lying = (tmp_path / name for name in ["empty.png", "text.png", "cut.png", "lying.png"])
    empty.touch()
    text.write_text("I only say that I am a picture")
    cut.write_bytes(PNG[: len(PNG) // 2])
    lying.write_bytes(encoded(kind="JPEG"))
    for path in empty, text, cut:
        message = refusal(path)
        assert path.name in message and "cannot be read as a picture" in message
    assert load_image(lying).size == PICTURE.size  # the content counts, not the name


def test_truncated_files_of_every_kind() -> None:
    for kind in "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP":
        whole = encoded(kind=kind)
        for length in 5, 30, len(whole) // 2, len(whole) - 60:
            assert "cannot be read as a picture" in refusal(whole[:length])


def test_a_lazily_opened_picture_fails_here_too() -> None:
    assert "cannot be read as a picture" in refusal(Image.open(io.BytesIO(PNG[:500])))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    monkeypatch.setattr(Image, "open", denied)  # file rights do not stop root
    assert "may not be read" in refusal(path)


@pytest.mark.parametrize("pixels", [100, 400])  # Pillow warns over its limit and raises over twice of it
def test_decompression_bomb(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert "MAX_IMAGE_PIXELS" in refusal(PNG)


def test_sources_of_the_wrong_kind() -> None:
    assert "NoneType" in refusal(None)
    assert "ndarray" in refusal(np.zeros((4, 4, 3)))
    assert "opened as text" in refusal(io.StringIO("text"))
    assert "no pixels" in refusal(Image.new("RGB", (0, 5)))
    assert "ftp:" in refusal("ftp://example.org/picture.png")
    assert "…" in refusal(base64.b64encode(PNG * 5).decode())  # too long for a path, and for a message
    assert "neither a file" in refusal("a\0b")


@pytest.mark.parametrize(
    "url", ["data:image/png;base64", "data:image/png;base64,?!", "data:image/png;base64,iVBOR"]
)
def test_broken_data_urls(url: str) -> None:
    assert "not a valid data: URL" in refusal(url)


def test_data_url_without_a_picture() -> None:
    assert "cannot be read as a picture" in refusal("data:,hello")


def test_the_callers_own_conversion_may_fail_in_its_own_way() -> None:
    def convert(image: Image.Image) -> Image.Image:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        load_image(PNG, convert_method=convert)
    assert load_image(PNG, convert_method=lambda image: image.convert("L")).mode == "L"


def test_downloads(server: ThreadingHTTPServer) -> None:
    for path in "/fine.png", "/moved", "/ä b.png", "/%C3%A4%20b.png":
        assert same(load_image(server.url + path))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing.png", "404"),
        ("/forbidden.png", "403"),
        ("/page.html", "cannot be read as a picture"),
        ("/cut.png", "ended after 300 of"),
        ("/cut-unannounced.png", "cannot be read as a picture"),
        ("/huge.png", "larger than"),
        ("/rubbish", "could not be downloaded"),
    ],
)
def test_bad_answers(server: ThreadingHTTPServer, path: str, reason: str) -> None:
    message = refusal(server.url + path)
    assert reason in message and path in message


def test_endless_body_stops_at_the_limit(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_DOWNLOAD_BYTES", 2**20)
    assert "larger than 1048576 bytes" in refusal(server.url + "/endless.png")
    assert server.sent < 2**25  # what the sockets may buffer on top


def test_dripping_body_stops_at_the_deadline(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DOWNLOAD_TOTAL_S", 0.2)
    assert "not complete after 0.2 s" in refusal(server.url + "/dripping.png")


def test_silent_server_stops_at_the_timeout(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DOWNLOAD_SILENCE_S", 0.2)
    start = time.monotonic()
    assert "timed out" in refusal(server.url + "/silent.png")
    assert time.monotonic() - start < 3


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in refusal(f"http://127.0.0.1:{port}/picture.png")
    assert "could not be downloaded" in refusal("http://127.0.0.1:port/picture.png")
    assert "could not be downloaded" in refusal("http://")

    def no_network(*args: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    message = refusal("https://example.org/picture.png")
    assert "name resolution" in message and "pass its path" in message


def test_grid_places_row_by_row() -> None:
    colours = [(10 * i, 0, 255 - i) for i in range(6)]
    grid = make_image_grid([Image.new("RGB", (3, 2), colour) for colour in colours], rows=2, cols=3)
    assert grid.size == (9, 4)
    assert [grid.getpixel((3 * (i % 3), 2 * (i // 3))) for i in range(6)] == colours


def test_grid_scales_deep_pictures() -> None:
    deep = Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))
    assert make_image_grid([deep], 1, 1).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("images", "rows", "cols", "resize", "reason"),
    [
        ([PICTURE] * 5, 2, 3, None, "5 pictures were given for 2 rows and 3 columns"),
        ([], 0, 0, None, "0 pictures"),
        ([PICTURE, None], 1, 2, None, r"images\[1\] is a NoneType"),
        ([PICTURE], 1, 1, 0, "resize is 0"),
    ],
)
def test_grid_refuses(images: list, rows: int, cols: int, resize: int | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        make_image_grid(images, rows, cols, resize)
