"""Putting the result back: the painted picture inside the mask, the original outside of it.

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
    """Lay the kept part of `original` over `painted`, as RGB of the original's size.

    `crop`: the box of the original that `painted` shows; it is scaled back to it first.
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
    # Premultiplied alpha: the colours of the half kept pixels are not lost to the empty canvas. The
    # rounding of this detour is the reference's, so a soft mask gives the same bytes.
    kept = Image.new("RGBa", original.size)
    keep = ImageOps.invert(eight_bit(mask, "mask").convert("L"))
    kept.paste(original.convert("RGBA"), mask=keep)
    result = painted.convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")
