"""The verbs as plain functions, which load the model themselves. The last model used stays loaded.

Without a model, `erase` and an `outpaint` without a prompt fill with patches of the photo (filling.py). A
network for erasing (erasers.py) does the same two without torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retouch.editing import filling
from retouch.editing.erasers import load_eraser, names_eraser, refusal
from retouch.editing.models import chosen, named
from retouch.editing.result import Edit

if TYPE_CHECKING:
    from retouch.editing.editor import Editor
    from retouch.editing.erasers import Eraser

_lock = threading.Lock()
_kept: tuple[Any, Editor | Eraser] | None = None


def inpaint(photo: Any, mask: Any, prompt: str = "", *, model: Any = None, **options: Any) -> Edit:
    """Paint `prompt` where the mask is white; everything else in the photo stays the same byte."""
    if names_eraser(model):
        raise refusal(named(model), "inpaint")
    return _editor(model, options).inpaint(photo, mask, prompt, **options)


def erase(photo: Any, mask: Any, *, model: Any = None, **options: Any) -> Edit:
    """Remove what is under the mask.

    Without a model the hole is filled with patches of the photo; `source` marks what may be copied. `model`
    may also be a network for erasing, such as "migan" or an ONNX file.
    """
    if named(model) is None:
        return filling.erase(photo, mask, **_without_device(options))
    return _editor(model, options).erase(photo, mask, **options)


def outpaint(photo: Any, prompt: str = "", *, model: Any = None, **options: Any) -> Edit:
    """Continue a photo beyond its edges: left=, right=, top=, bottom= in pixels, or aspect="16:9".

    Without a model and a prompt, with patches of the photo; `source` marks what may be copied.
    """
    if not prompt.strip() and named(model) is None:
        return filling.outpaint(photo, **_without_device(options))
    if prompt.strip() and names_eraser(model):
        raise refusal(named(model), "outpaint with a prompt")
    return _editor(model, options).outpaint(photo, prompt, **options)


def _without_device(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without those of loading a model, which change nothing where none is loaded."""
    return {name: value for name, value in options.items() if name not in ("device", "dtype")}


def _editor(model: Any, options: dict[str, Any]) -> Editor | Eraser:
    """Return the editor of a model, loaded once; `device` and `dtype` are taken out of the options."""
    global _kept
    load: Callable[..., Editor | Eraser]
    if hasattr(model, "erase"):  # an editor, or an eraser
        return model
    if names_eraser(model):
        load = load_eraser
    else:
        from retouch.editing.editor import load
    loading = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    name = chosen(model)
    key = (str(name), tuple(sorted((key, str(value)) for key, value in loading.items())))
    with _lock:
        if _kept is None or _kept[0] != key:
            _kept = None  # free the old model before the new one is loaded
            _kept = key, load(name, **loading)
        return _kept[1]
