"""Control pictures under the name `retouch.control`: `retouch.control.canny(image)` and others."""

from __future__ import annotations

from retouch.images.control_pictures import canny, make_inpaint_condition, scribble, tile

inpaint_condition = make_inpaint_condition

__all__ = ["canny", "inpaint_condition", "make_inpaint_condition", "scribble", "tile"]
