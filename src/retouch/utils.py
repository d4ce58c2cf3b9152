"""The familiar door: what code written for diffusers imports from its `utils`."""

from __future__ import annotations

from retouch.images.files import load_image, make_image_grid

__all__ = ["load_image", "make_image_grid"]
