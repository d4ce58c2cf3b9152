"""Resizing pictures with Pillow, padding tensors to a multiple, and the way back.

The resizing has the reference's arithmetic, so that the model sees the same pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from retouch.errors import InputError
from retouch.images.modes import require_picture

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE_MODES = ("default", "fill", "crop")


def resize_picture(
    image: Image.Image,
    width: int,
    height: int,
    mode: str = "default",
    resample: str = "lanczos",
    reducing_gap: float | None = None,
) -> Image.Image:
    """Resize to exactly width x height.

    "default" stretches, "fill" keeps the aspect and fills the two free strips from the picture's
    edges, "crop" keeps the aspect and cuts the sides that do not fit.
    """
    require_picture(image, "image")
    require_size(width, height)
    if mode == "default":
        return image.resize((width, height), RESAMPLING[resample], reducing_gap=reducing_gap)
    if mode not in RESIZE_MODES:
        raise InputError(
            f"resize_mode is {mode!r}. Accepted are {', '.join(RESIZE_MODES)}. Choose one of them; "
            f'"default" stretches the picture to the size.',
            parameter="resize_mode",
        )
    scaled = _keeping_aspect(image, width, height, resample, cover=mode == "crop")
    left, top = width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(scaled, (left, top))
    # Pillow stretches the empty box at an edge into a strip that continues the picture there.
    if mode == "fill" and top > 0:
        for edge, y in (0, 0), (scaled.height, top + scaled.height):
            canvas.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, y))
    elif mode == "fill" and left > 0:
        for edge, x in (0, 0), (scaled.width, left + scaled.width):
            canvas.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    return canvas


def fill_pixels(pixels: Tensor, width: int, height: int) -> Tensor:
    """Resize (batch, channels, height, width) as `resize_picture` with "fill", by the nearest neighbour."""
    import torch  # takes a second, which callers that only resize pictures need not spend

    given_height, given_width = pixels.shape[-2:]
    inner_width, inner_height = _size_keeping_aspect(given_width, given_height, width, height)
    scaled = torch.nn.functional.interpolate(pixels, size=(inner_height, inner_width))
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    edges = (left, width - inner_width - left, top, height - inner_height - top)
    return torch.nn.functional.pad(scaled, edges, mode="replicate")


def _keeping_aspect(
    image: Image.Image, width: int, height: int, resample: str, *, cover: bool
) -> Image.Image:
    size = _size_keeping_aspect(image.width, image.height, width, height, cover=cover)
    return image.resize(size, RESAMPLING[resample])


def _size_keeping_aspect(
    given_width: int, given_height: int, width: int, height: int, *, cover: bool = False
) -> tuple[int, int]:
    wanted, given = width / height, given_width / given_height
    if wanted > given if cover else wanted < given:
        return width, max(1, given_height * width // given_width)
    return max(1, given_width * height // given_height), height


def require_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(
            f"The size to resize to is {width}x{height}. At least 1x1 is accepted, and at least the VAE's "
            "factor (usually 8) per side where sizes are rounded down to it. Give a larger width and "
            "height.",
            parameter="width" if width < 1 else "height",
        )


def pad_pixels(pixels: Tensor, multiple: int) -> Tensor:
    """Grow (..., height, width) to a multiple by repeating the last row and column; undo with `crop_to`."""
    import torch

    height, width = pixels.shape[-2:]
    rows = torch.arange(height + -height % multiple, device=pixels.device).clamp(max=height - 1)
    columns = torch.arange(width + -width % multiple, device=pixels.device).clamp(max=width - 1)
    return pixels[..., rows, :][..., columns]


def crop_to(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return the first rows and columns, without the padding."""
    return pixels[..., :height, :width]
