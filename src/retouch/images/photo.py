"""A photo in its own mode, which models paint on and which comes back unchanged everywhere else.

The painted part is converted to the photo's mode: every stored value outside it stays the same byte, and
size, mode, alpha, palette, profile and metadata stay the same.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from retouch.errors import InputError
from retouch.images.files import ImageSource, load_image
from retouch.images.mask import Box
from retouch.images.modes import deep_white, eight_bit, is_deep

Patch = tuple[Box, np.ndarray, np.ndarray]  # box, pixels (height, width, 3) of 8 bits, which of them to take

_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "I;16", "I", "F", "1", "CMYK")
_LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".avif": "AVIF"}
# Modes that a file type holds unchanged. Pillow converts or refuses others.
_TIFF = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "F", "CMYK")
_HOLDS = {
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": ("L", "RGB", "CMYK"),
    ".jpeg": ("L", "RGB", "CMYK"),
    ".webp": ("RGB", "RGBA"),
    ".avif": ("RGB", "RGBA"),
    ".bmp": ("1", "L", "P", "RGB"),
    ".tga": ("L", "LA", "P", "RGB", "RGBA"),
    ".gif": ("P",),
}
_XMP = "XML:com.adobe.xmp"  # the key in a PNG


@dataclass(frozen=True)
class Photo:
    """An upright picture in its own mode, with its file's metadata in `image.info`."""

    image: Image.Image
    format: str | None = None

    @classmethod
    def open(cls, source: ImageSource | np.ndarray | Photo) -> Photo:
        """Open a path, URL, bytes, PIL picture or array of 8-bit values; an animation is refused."""
        if isinstance(source, Photo):
            return source
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        try:
            image = load_image(source, lambda picture: picture)
        except InputError as error:
            raise InputError(str(error), parameter="photo") from error
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO: a phone's JPEG with a preview or depth map
            raise InputError(
                f"The photo is an animation, or has pages: {frames} pictures. One is accepted. Choose it "
                f"with photo.seek(index) and give photo.copy().",
                parameter="photo",
            )
        if image.mode.startswith("I;16") and image.mode != "I;16":
            image = _copied_info(image, Image.fromarray(np.asarray(image).astype("<u2")))
        if image.mode not in _MODES:
            raise InputError(
                f"The photo has mode {image.mode}. Accepted are {', '.join(_MODES)}. Convert it, for example "
                "with photo.convert('RGB').",
                parameter="photo",
            )
        if getattr(image, "is_cut", False):
            warnings.warn(
                "The photo has 16 bits for each colour, but only 8 are read, so the result has 8. To keep "
                "all of them, paste the repainted part into the original in another program.",
                stacklevel=2,
            )
        photo = cls(image, image.format)
        if is_deep(image):
            photo._white  # noqa: B018  refuses values outside the mode's range
        return photo

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.size

    @property
    def rgb(self) -> np.ndarray:
        """Pixels for a model: (height, width, 3) of 8 bits, without transparency."""
        return self.pixels((0, 0, *self.size))

    def pixels(self, box: Box) -> np.ndarray:
        """Return a part of `rgb`."""
        part = self.image.crop(box)
        if is_deep(part):  # scaled by the whole photo's white, not the part's
            levels = np.rint(np.asarray(part) * (255 / self._white)).astype(np.uint8)
            return np.repeat(levels[..., None], 3, axis=2)
        return np.array(eight_bit(part).convert("RGB"))

    @cached_property
    def _white(self) -> float:
        return deep_white(self.image, "photo")

    def extended(self, left: int, top: int, right: int, bottom: int) -> tuple[Photo, np.ndarray]:
        """Return the photo on a larger canvas, and a boolean array that is true where the canvas is new."""
        width, height = self.size
        pixels, limit = (width + left + right) * (height + top + bottom), Image.MAX_IMAGE_PIXELS
        if limit is not None and pixels > 2 * limit:
            raise InputError(
                f"The photo would have {pixels} pixels. At most {2 * limit} are accepted, as for pictures "
                "from files. Add less, or raise PIL.Image.MAX_IMAGE_PIXELS.",
                parameter="photo",
            )
        canvas = self.image.crop((-left, -top, width + right, height + bottom))
        new = np.ones((canvas.height, canvas.width), bool)
        new[top : top + height, left : left + width] = False
        if canvas.mode in ("RGBA", "LA", "PA"):  # opaque, so that the painted part is visible
            alpha = np.array(canvas.getchannel("A"))
            alpha[new] = 255
            canvas.putalpha(Image.fromarray(alpha))
        return replace(self, image=canvas), new

    def with_painted(self, patches: Iterable[Patch]) -> Image.Image:
        """Return the photo with the chosen pixels of each patch; all other bytes stay the same."""
        result = self.image.copy()
        for box, painted, where in patches:
            part = self.image.crop(box)
            stored = np.array(part)
            # The alpha stays as it is.
            colours = stored[..., 0] if part.mode in ("LA", "PA") else stored
            colours = stored[..., :3] if part.mode == "RGBA" else colours
            colours[where] = self._in_mode(painted[where])
            result.paste(_same_mode(stored, part), box[:2])
        return result

    def _in_mode(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (count, 3) of 8 bits as the photo's mode stores them."""
        mode = self.image.mode
        if mode in ("P", "PA"):
            return self._nearest_colours(pixels)
        picture = Image.fromarray(np.ascontiguousarray(pixels[None]))
        if mode in ("RGB", "RGBA", "CMYK"):
            return np.asarray(picture.convert(mode.removesuffix("A")))[0]
        grey = np.asarray(picture.convert("L"))[0]
        if mode == "1":
            return grey >= 128
        if is_deep(self.image):
            return grey * (self._white / 255)  # exact: white is 1, or a multiple of 255
        return grey

    def _nearest_colours(self, pixels: np.ndarray) -> np.ndarray:
        """Return indices into the photo's palette: a new palette would change every pixel's meaning."""
        palette = np.array(self.image.getpalette("RGB"), np.float32).reshape(-1, 3)
        key = self.image.info.get("transparency") if self.image.mode == "P" else None
        alpha = np.frombuffer(key, np.uint8)[: len(palette)] if isinstance(key, bytes) else np.empty(0)
        hidden = np.array([key]) if isinstance(key, int) else np.flatnonzero(alpha < 255)
        palette[hidden[hidden < len(palette)]] = 1e6  # a transparent entry is never the nearest
        packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colours, back = np.unique(packed, return_inverse=True)
        colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.float32)
        nearest = np.empty(len(colours), np.uint8)
        for start in range(0, len(colours), 4096):
            away = colours[start : start + 4096, None] - palette[None]
            nearest[start : start + 4096] = (away**2).sum(-1).argmin(1)
        return nearest[back]

    def save(
        self,
        image: Image.Image,
        path: str | os.PathLike[str],
        *,
        text: dict[str, str] | None = None,
        quality: int | None = None,
    ) -> Path:
        """Write a result with the photo's metadata; an error leaves no partial file.

        `text` goes into a PNG's text. `quality` is that of JPEG, WebP and AVIF, 1 to 100. These formats
        compress all pixels again; a warning says so.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        check_holds(target, image.mode)
        if suffix in _LOSSY:
            warnings.warn(
                f"{_LOSSY[suffix]} compresses the whole picture again, so pixels outside the mask change a "
                "little too. Save as .png to keep them unchanged.",
                stacklevel=2,
            )
        if quality is not None and not (suffix in _LOSSY and 1 <= quality <= 100):
            raise InputError(
                f"quality={quality} was given for {target.name!r}. It takes 1 to 100, and files that end in "
                f"{', '.join(_LOSSY)}. Leave it out, or choose another ending.",
                parameter="quality",
            )
        _write(image, target, self._options(suffix, text or {}, quality or 95))
        return target

    def _options(self, suffix: str, text: dict[str, str], quality: int) -> dict[str, Any]:
        info = self.image.info
        options: dict[str, Any] = {key: info[key] for key in ("icc_profile", "dpi", "exif") if info.get(key)}
        if suffix == ".png":
            options["pnginfo"] = self._png_text(text)
        elif suffix in _LOSSY:
            options["quality"] = quality
            xmp = info.get("xmp") or info.get(_XMP)
            if xmp:
                options["xmp"] = xmp.encode() if isinstance(xmp, str) else xmp
            if suffix in (".jpg", ".jpeg"):
                options["subsampling"] = 0
                if info.get("comment"):
                    options["comment"] = info["comment"]
        return options

    def _png_text(self, text: dict[str, str]) -> PngImagePlugin.PngInfo:
        info = self.image.info
        is_png = self.format == "PNG"
        kept: dict[str, str] = {
            str(key): value for key, value in info.items() if is_png and isinstance(value, str)
        }
        if isinstance(info.get("xmp"), bytes):
            kept.setdefault(_XMP, info["xmp"].decode("utf-8", "replace"))
        chunk = PngImagePlugin.PngInfo()
        for key, value in {**kept, **text}.items():
            if key == _XMP:  # readers look for it only in this kind of chunk
                chunk.add_itxt(key, value)
            else:
                chunk.add_text(key, value)
        return chunk


def check_holds(path: Path, mode: str) -> None:
    """Refuse a file whose format, by its ending, cannot hold pictures of a mode unchanged."""
    allowed = _HOLDS.get(path.suffix.lower())
    if allowed is None:
        raise InputError(
            f"{path.name!r} has no ending that names a picture format which keeps photos unchanged. "
            f"Accepted are {', '.join(_HOLDS)}; give one of these.",
            parameter="path",
        )
    if mode not in allowed:
        others = [suffix for suffix, modes in _HOLDS.items() if mode in modes]
        raise InputError(
            f"A {path.suffix.lower()} file cannot hold a picture of mode {mode}, only {', '.join(allowed)}. "
            f"{' or '.join(others)} can; or convert the result first.",
            parameter="path",
        )


def _from_array(values: np.ndarray) -> Image.Image:
    is_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if values.dtype != np.uint8 or not values.size or not is_picture:
        raise InputError(
            f"photo is an array of {values.dtype} with the shape {values.shape}. Accepted are 8-bit arrays "
            f"(uint8) of (height, width), (height, width, 3) or (height, width, 4). Scale and convert it.",
            parameter="photo",
        )
    return Image.fromarray(values)


def _same_mode(stored: np.ndarray, like: Image.Image) -> Image.Image:
    if like.mode not in ("P", "PA", "CMYK"):
        return Image.fromarray(stored)
    picture = Image.frombytes(like.mode, like.size, stored.tobytes())
    if like.mode in ("P", "PA"):
        picture.putpalette(like.getpalette("RGB") or [], "RGB")
    return picture


def _copied_info(old: Image.Image, new: Image.Image) -> Image.Image:
    new.info, new.format = dict(old.info), old.format
    return new


def _write(image: Image.Image, target: Path, options: dict[str, Any]) -> None:
    """Write through a file beside the target, so that a full disk or Ctrl-C leaves the old file or none."""
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        with open(temporary, "xb") as file:
            image.save(file, Image.registered_extensions()[target.suffix.lower()], **options)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None:
            raise _unsuitable(target, error) from error
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}). A folder that exists, may be written "
            "to and has room is needed; no partial file was left. Choose another place for the result.",
            parameter="path",
        ) from error
    except ValueError as error:  # metadata or a size that the format cannot hold
        raise _unsuitable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unsuitable(target: Path, error: Exception) -> InputError:
    return InputError(
        f"{target.name} cannot hold this picture ({error}). Formats differ in the sizes and in the metadata "
        "that they hold; no partial file was left. Save as .png or .tif.",
        parameter="path",
    )
