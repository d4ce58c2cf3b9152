"""A photo as it came: what a model may paint on, and everything that has to come back unchanged.

The painted part is put into the photo's own mode: every stored value outside it stays the same byte, and
size, mode, alpha, palette, profile and metadata stay what they were.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from retouch.errors import InputError
from retouch.images.files import ImageSource, load_image
from retouch.images.modes import eight_bit

_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "I;16", "I", "F", "1", "CMYK")
_LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".avif": "AVIF"}
# Modes that a file type can hold; others are refused rather than converted behind the user's back.
_HOLDS = {".jpg": ("L", "RGB", "CMYK"), ".jpeg": ("L", "RGB", "CMYK"), ".webp": ("RGB", "RGBA", "L", "P")}


@dataclass(frozen=True)
class Photo:
    """An upright picture in its own mode, with what its file said of it."""

    image: Image.Image
    format: str | None = None

    @classmethod
    def open(cls, source: ImageSource | np.ndarray) -> Photo:
        """From a path, URL, bytes, PIL picture or array of 8-bit values; an animation is refused."""
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        image = load_image(source, lambda picture: picture)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise InputError(
                f"The photo is an animation of {frames} frames. One picture is accepted. Choose a frame with "
                f"photo.seek(index) and give photo.convert('RGB')."
            )
        if image.mode not in _MODES:
            image = image.convert("RGB")
        return cls(image, image.format)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.size

    @property
    def rgb(self) -> np.ndarray:
        """What a model sees: (height, width, 3) of 8 bits, without transparency."""
        return np.asarray(eight_bit(self.image).convert("RGB"))

    def extended(self, left: int, top: int, right: int, bottom: int) -> tuple[Photo, np.ndarray]:
        """The photo on a larger canvas, and where the canvas is new."""
        size = self.image.width + left + right, self.image.height + top + bottom
        canvas = Image.new(self.image.mode, size)
        if self.image.mode in ("P", "PA"):
            canvas.putpalette(self.image.getpalette("RGB") or [], "RGB")
        elif self.image.mode in ("RGBA", "LA"):
            canvas.putalpha(255)  # what is painted there is to be seen
        canvas.paste(self.image, (left, top))
        canvas.info = dict(self.image.info)
        new = np.ones((size[1], size[0]), bool)
        new[top : top + self.image.height, left : left + self.image.width] = False
        return replace(self, image=canvas), new

    def with_painted(self, painted: np.ndarray, where: np.ndarray) -> Image.Image:
        """The photo with `painted` (height, width, 3) where `where` is true, all else to the byte."""
        picture = Image.fromarray(np.ascontiguousarray(painted, np.uint8))
        mode = self.image.mode
        if mode in ("P", "PA"):
            values = self._nearest_colours(picture)
        elif mode in ("I;16", "I", "F"):
            values = _deep(np.asarray(picture.convert("L")), np.asarray(self.image))
        elif mode == "1":
            values = np.asarray(picture.convert("L")) >= 128
        else:
            colour = {"RGBA": "RGB", "LA": "L"}.get(mode, mode)
            values = np.asarray(picture.convert(colour))
        stored = np.array(self.image)
        if mode in ("RGBA", "LA", "PA"):  # the alpha stays as it is
            colours = stored[..., :-1] if mode == "RGBA" else stored[..., 0]
            colours[where] = values[where]
        else:
            stored[where] = values[where]
        result = self.image.copy()
        result.paste(_same_mode(stored, self.image))
        return result

    def _nearest_colours(self, picture: Image.Image) -> np.ndarray:
        """Indices into the palette that is there: a new one would change every pixel's meaning."""
        palette = np.array(self.image.getpalette("RGB"), np.float32).reshape(-1, 3)
        key = self.image.info.get("transparency") if self.image.mode == "P" else None
        alpha = np.frombuffer(key, np.uint8)[: len(palette)] if isinstance(key, bytes) else np.empty(0)
        hidden = np.array([key]) if isinstance(key, int) else np.flatnonzero(alpha < 255)
        palette[hidden] = 1e6  # what is transparent is never the nearest
        colours, back = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
        nearest = np.empty(len(colours), np.uint8)
        for start in range(0, len(colours), 4096):
            part = colours[start : start + 4096, None].astype(np.float32) - palette[None]
            nearest[start : start + 4096] = (part**2).sum(-1).argmin(1)
        return nearest[back.reshape(-1)].reshape(picture.height, picture.width)

    def save(
        self, image: Image.Image, path: str | os.PathLike[str], *, text: dict[str, str] | None = None
    ) -> Path:
        """Write a result with the photo's metadata; nothing half-written is left where it cannot be.

        `text` goes into a PNG's text. A JPEG is compressed anew, which touches all pixels: said in a warning.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        allowed = _HOLDS.get(suffix)
        if suffix not in Image.registered_extensions():
            raise InputError(
                f"{target.name!r} has no ending that names a picture format. Accepted are .png, .jpg, .webp, "
                f".tif and others that Pillow writes; give one of these."
            )
        if allowed and image.mode not in allowed:
            raise InputError(
                f"A {suffix} file cannot hold a picture of mode {image.mode}. It holds "
                f"{', '.join(allowed)}; save "
                f"as .png, or convert the result first."
            )
        if suffix in _LOSSY:
            warnings.warn(
                f"{_LOSSY[suffix]} compresses the whole picture anew, so pixels outside the mask change a "
                "little too. Save as .png to keep them to the byte.",
                stacklevel=2,
            )
        options = self._options(suffix, text or {})
        _write(image, target, options)
        return target

    def _options(self, suffix: str, text: dict[str, str]) -> dict[str, Any]:
        info = self.image.info
        options: dict[str, Any] = {key: info[key] for key in ("icc_profile", "dpi") if info.get(key)}
        exif = self.image.getexif()
        exif.pop(ExifTags.Base.Orientation, None)  # the pixels are upright already
        if len(exif):
            options["exif"] = exif.tobytes()
        if suffix == ".png":
            chunk = PngImagePlugin.PngInfo()
            kept = {key: value for key, value in getattr(self.image, "text", {}).items() if key not in text}
            for key, value in {**kept, **text}.items():
                chunk.add_itxt(key, value)
            options["pnginfo"] = chunk
        elif suffix in _LOSSY:
            options |= {"quality": 95} | ({"subsampling": 0} if suffix in (".jpg", ".jpeg") else {})
        return options


def _from_array(values: np.ndarray) -> Image.Image:
    if (
        values.dtype != np.uint8
        or values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] not in (3, 4))
    ):
        raise InputError(
            f"photo is an array of {values.dtype} with the shape {values.shape}. Accepted are 8-bit arrays "
            f"(uint8) of (height, width), (height, width, 3) or (height, width, 4). Scale and convert it."
        )
    return Image.fromarray(values)


def _deep(grey: np.ndarray, like: np.ndarray) -> np.ndarray:
    """8-bit grey in the scale of a deep picture: as modes.deep_values reads it."""
    if like.dtype.kind == "f":
        white = 1.0 if like.max() <= 1 else 255.0
        return (grey / 255 * white).astype(like.dtype)
    factor = 1 if like.dtype.itemsize == 4 and like.max() <= 255 else 257
    return grey.astype(like.dtype) * like.dtype.type(factor)


def _same_mode(stored: np.ndarray, like: Image.Image) -> Image.Image:
    picture = Image.fromarray(stored, mode=None) if like.mode not in ("P", "PA", "CMYK") else None
    if picture is None:
        picture = Image.frombytes(like.mode, like.size, np.ascontiguousarray(stored).tobytes())
        if like.mode in ("P", "PA"):
            picture.putpalette(like.getpalette("RGB") or [], "RGB")
    return picture


def _write(image: Image.Image, target: Path, options: dict[str, Any]) -> None:
    """Through a file beside the target, so that a full disk or Ctrl-C leaves the old one or none."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=target.suffix, delete=False) as file:
            temporary = Path(file.name)
            image.save(file, Image.registered_extensions()[target.suffix.lower()], **options)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}). A folder that exists, may be written "
            "to and has room is needed; nothing was left there. Choose another place for the result."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
