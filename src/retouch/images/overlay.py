"""Overlay of the original on the painted picture, outside the mask.

Where the mask is black, every pixel is the original's, byte for byte.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from retouch.errors import InputError
from retouch.images.modes import eight_bit, require_picture
from retouch.images.sizes import resize_picture


def apply_overlay(
    mask: Image.Image,
    original: Image.Image,
    painted: Image.Image,
    crop: tuple[int, int, int, int] | None = None,
    resample: str = "lanczos",
) -> Image.Image:
    """Return `painted` with the kept part of `original` over it, as RGB of the original's size.

    `crop` is the box of the original that `painted` shows; `painted` is scaled to it first.
    """
    for picture, name in (mask, "mask"), (original, "init_image"), (painted, "image"):
        require_picture(picture, name)
    if crop is not None:
        left, top, right, bottom = crop
        canvas = Image.new("RGB", original.size)
        canvas.paste(resize_picture(painted, right - left, bottom - top, "crop", resample), (left, top))
        painted = canvas
    for picture, name in (mask, "mask"), (painted, "image"):
        if picture.size != original.size:
            raise InputError(
                f"{name} is {picture.width}x{picture.height} but init_image is "
                f"{original.width}x{original.height}. They must match. Resize it with "
                f"{name}.resize(init_image.size), or pass crop_coords if the image shows a crop.",
                parameter=name,
            )
    # With premultiplied alpha, half kept pixels do not mix with the empty canvas. The detour rounds as the
    # reference does, so a soft mask gives the same bytes.
    kept = Image.new("RGBa", original.size)
    keep = ImageOps.invert(eight_bit(mask, "mask").convert("L"))
    kept.paste(original.convert("RGBA"), mask=keep)
    result = painted.convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")
