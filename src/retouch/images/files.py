"""Loading pictures from files, URLs and bytes; and several pictures in one grid.

A loaded picture is upright (EXIF orientation applied) and complete: broken files and other files are
reported here, not later in the middle of a run.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Union

from PIL import Image, ImageOps, UnidentifiedImageError

from retouch.errors import InputError
from retouch.images.modes import eight_bit, require_picture

ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO, Image.Image]

MAX_DOWNLOAD_BYTES = 256 * 2**20
DOWNLOAD_SILENCE_S = 20.0  # longest time without a byte
DOWNLOAD_TOTAL_S = 300.0  # longest time in all, for servers that send one byte at a time

_ACCEPTED = "a path, an http(s) or data: URL, bytes, an open binary file or a PIL picture"


def load_image(
    image: ImageSource, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Load a picture as RGB, or return what `convert_method` makes of it in the file's own mode.

    16-bit greyscale is scaled to 8 bits. Transparency is dropped, not composited.
    """
    if isinstance(image, Image.Image):
        return _finished(require_picture(image, "image"), "the given picture", convert_method)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return _decoded(io.BytesIO(_download(image)), _shown(image), convert_method)
    if isinstance(image, str) and image.startswith("data:"):
        return _decoded(io.BytesIO(_data_url(image)), _shown(image), convert_method)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(image), f"the given {len(image)} bytes", convert_method)
    if isinstance(image, str | os.PathLike):
        return _decoded(_existing_file(Path(image)), _shown(image), convert_method)
    if hasattr(image, "read"):
        content = image.read()
        if isinstance(content, bytes):
            return _decoded(
                io.BytesIO(content), f"the given file object ({len(content)} bytes)", convert_method
            )
    raise InputError(
        f"image is a {type(image).__name__}{', opened as text' if hasattr(image, 'read') else ''}. "
        f"Accepted is {_ACCEPTED}. For an array use PIL.Image.fromarray.",
        parameter="image",
    )


def make_image_grid(
    images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None
) -> Image.Image:
    """Put rows * cols pictures into one, row by row; cells have the size of the first picture.

    `resize` makes every picture a square of this side first.
    """
    pictures = list(images)
    if rows < 1 or cols < 1 or len(pictures) != rows * cols:
        raise InputError(
            f"{len(pictures)} pictures were given for {rows} rows and {cols} columns. Exactly rows * cols "
            "pictures and at least one of each are accepted. Change rows and cols, or the list.",
            parameter="images",
        )
    for index, picture in enumerate(pictures):
        require_picture(picture, f"images[{index}]")
    if resize is not None:
        if resize < 1:
            raise InputError(
                f"resize is {resize}. A side of at least 1 pixel is accepted. Pass 256, for example.",
                parameter="resize",
            )
        pictures = [picture.resize((resize, resize)) for picture in pictures]
    width, height = pictures[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for index, picture in enumerate(pictures):
        grid.paste(eight_bit(picture), (index % cols * width, index // cols * height))
    return grid


def _shown(source: object) -> str:
    text = str(source)
    return repr(text if len(text) <= 120 else text[:100] + "…")


def _existing_file(path: Path) -> Path:
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # for example a name that is too long: base64 without "data:" before it
        is_file = is_folder = False
    if not is_file:
        found = "is a folder" if is_folder else "is neither a file nor a URL that we can read"
        raise InputError(
            f"{_shown(path)} {found}. Accepted is {_ACCEPTED}. Check the spelling and the working folder.",
            parameter="image",
        )
    return path


def _decoded(
    source: Path | io.BytesIO, name: str, convert_method: Callable[[Image.Image], Image.Image] | None
) -> Image.Image:
    try:
        picture = Image.open(source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, error) from error
    except PermissionError as error:
        raise InputError(
            f"{name} may not be read ({error}). A readable file is accepted. Change its rights.",
            parameter="image",
        ) from error
    except Exception as error:
        raise _not_a_picture(name, error) from error
    with picture:
        return _finished(picture, name, convert_method)


def _finished(
    picture: Image.Image, name: str, convert_method: Callable[[Image.Image], Image.Image] | None
) -> Image.Image:
    # Pillow reads 16 bits for each colour as 8; only the file's tiles show it, and only before they are read.
    is_cut = not picture.mode.startswith("I") and ";16" in str(getattr(picture, "tile", ""))
    try:
        upright = ImageOps.exif_transpose(picture)  # reads all pixels, and is a copy even without a turn
        # The copy loses these, which some convert_methods need.
        upright.format, upright.n_frames = picture.format, getattr(picture, "n_frames", 1)  # type: ignore[attr-defined]
        upright.is_cut = is_cut  # type: ignore[attr-defined]
        if picture.format == "TIFF" and "exif" not in upright.info:
            upright.info["exif"] = _description(picture)
        ready = upright if convert_method is not None else eight_bit(upright).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, error) from error
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise _not_a_picture(name, error) from error
    return ready if convert_method is None else convert_method(ready)


# The tags of a TIFF that describe the photo, not the file: title, camera, time, author, XMP, EXIF, GPS.
_DESCRIBING = (270, 271, 272, 305, 306, 315, 316, 700, 33432, 34665, 34853)


def _description(picture: Image.Image) -> bytes:
    """Return the tags that describe a TIFF's photo, as the EXIF block of other formats."""
    described = Image.Exif()
    for tag, value in picture.getexif().items():
        if tag in (0x8769, 0x8825):
            described.get_ifd(tag).update(picture.getexif().get_ifd(tag))
        elif tag in _DESCRIBING:
            described[tag] = value
    return described.tobytes() if len(described) else b""


def _not_a_picture(name: str, error: Exception) -> InputError:
    reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    return InputError(
        f"{name} cannot be read as a picture{reason}: it is broken, cut off, or of another kind. Accepted "
        "are complete files of the formats that Pillow reads (PNG, JPEG, WebP, TIFF, GIF, ...). Open it in "
        "a picture viewer and save it again as PNG; for HEIC, import and register pillow-heif first.",
        parameter="image",
    )


def _bomb(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} has too many pixels ({error}). Pillow's limit against decompression bombs is accepted. If "
        "you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS and load it again; else make it smaller.",
        parameter="image",
    )


def _data_url(url: str) -> bytes:
    head, comma, payload = url.partition(",")
    content = urllib.parse.unquote_to_bytes(payload)
    try:
        if not comma:
            raise ValueError("no comma after the media type")
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else content
    except (ValueError, binascii.Error) as error:
        raise InputError(
            f"{_shown(url)} is not a valid data: URL ({error}). data:image/png;base64,... is accepted. "
            f"Check that it was copied as a whole.",
            parameter="image",
        ) from error


def _download(url: str) -> bytes:
    address = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")
    try:
        # Some hosts refuse Python's default name.
        request = urllib.request.Request(address, headers={"User-Agent": "retouch"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SILENCE_S) as response:
            return _body(response, url)
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed_download(url, f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _failed_download(url, str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _failed_download(url, str(error) or type(error).__name__) from error


def _body(response: http.client.HTTPResponse, url: str) -> bytes:
    """Read in pieces, so that an endless or endlessly slow answer is given up."""
    expected = int(response.headers.get("Content-Length", -1))
    deadline = time.monotonic() + DOWNLOAD_TOTAL_S
    body = bytearray()
    while piece := response.read1(2**16):
        body += piece
        if max(len(body), expected) > MAX_DOWNLOAD_BYTES:
            raise _failed_download(url, f"it is larger than {MAX_DOWNLOAD_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _failed_download(url, f"it was not complete after {DOWNLOAD_TOTAL_S:g} s")
    if len(body) < expected:
        raise _failed_download(url, f"the connection ended after {len(body)} of {expected} bytes")
    return bytes(body)


def _failed_download(url: str, reason: str) -> InputError:
    return InputError(
        f"{_shown(url)} could not be downloaded: {reason}. An http(s) address that answers with a picture is "
        f"accepted. Check the address and the network, or download the file and pass its path.",
        parameter="image",
    )
