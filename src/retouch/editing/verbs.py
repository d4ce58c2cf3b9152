"""The verbs as plain functions, which load the model themselves. The last model used stays loaded."""

from __future__ import annotations

import threading
from typing import Any

from retouch.editing.editor import Editor, load
from retouch.editing.models import chosen
from retouch.editing.result import Edit

_lock = threading.Lock()
_kept: tuple[Any, Editor] | None = None


def inpaint(photo: Any, mask: Any, prompt: str = "", *, model: Any = None, **options: Any) -> Edit:
    """Paint `prompt` where the mask is white; everything else in the photo stays the same byte."""
    return _editor(model, options).inpaint(photo, mask, prompt, **options)


def erase(photo: Any, mask: Any, *, model: Any = None, **options: Any) -> Edit:
    """Remove what is under the mask."""
    return _editor(model, options).erase(photo, mask, **options)


def outpaint(photo: Any, prompt: str = "", *, model: Any = None, **options: Any) -> Edit:
    """Continue a photo beyond its edges: left=, right=, top=, bottom= in pixels, or aspect="16:9"."""
    return _editor(model, options).outpaint(photo, prompt, **options)


def _editor(model: Any, options: dict[str, Any]) -> Editor:
    """Return the editor of a model, loaded once; `device` and `dtype` are taken out of the options."""
    global _kept
    if isinstance(model, Editor):
        return model
    loading = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    name = chosen(model)
    key = (str(name), tuple(sorted((key, str(value)) for key, value in loading.items())))
    with _lock:
        if _kept is None or _kept[0] != key:
            _kept = None  # free the old model before the new one is loaded
            _kept = key, load(name, **loading)
        return _kept[1]
