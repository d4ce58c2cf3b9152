"""The functions that code written for diffusers imports from its `utils`."""

from __future__ import annotations

from retouch.images.control_pictures import make_inpaint_condition
from retouch.images.files import load_image, make_image_grid

__all__ = ["load_image", "make_image_grid", "make_inpaint_condition"]
