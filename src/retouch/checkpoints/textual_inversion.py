"""Textual inversion files: learned words, each stored as one or several vectors of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retouch.checkpoints.contents import describe
from retouch.errors import CheckpointError

_PAIR = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class Learned:
    """A learned word: its token in the file, and its vectors for each text encoder.

    Most files do not name their encoder; they have one entry, named "".
    """

    token: str | None
    vectors: Mapping[str, Tensor]  # (vectors, width)


def learned_from(content: Any, source: str) -> Learned:
    """Return the learned word from the contents of a file."""
    token: Any = None
    found: dict[str, Any] = {}
    if isinstance(content, Tensor):
        found = {"": content}
    elif isinstance(content, Mapping):
        if "string_to_param" in content:  # a pickled file of the web UI; "*" was the word in training
            params = content["string_to_param"]
            found = {"": params.get("*", next(iter(params.values()), None))}
            token = content.get("name")
        elif set(content) == set(_PAIR):
            found = {encoder: content[key] for key, encoder in _PAIR.items()}
        elif len(content) == 1:
            (token,), found = content, {"": next(iter(content.values()))}
            if token in ("emb_params", *_PAIR, ""):  # a name for the contents, not a token
                found = {_PAIR.get(token, ""): found[""]}
                token = None
    vectors = {}
    for encoder, value in found.items():
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel():
            break
        vectors[encoder] = value.detach().reshape(-1, value.shape[-1])
    if not found or len(vectors) < len(found) or not isinstance(token, str | None):
        names = [str(name) for name in content] if isinstance(content, Mapping) else []
        noun, advice = describe(names) if names else (f"a {type(content).__name__}", "Check the file")
        raise CheckpointError(
            f"{source} is not a textual inversion; it looks like {noun}. Accepted are one tensor of vectors "
            f"under its token, the web UI's files (string_to_param, emb_params), SDXL's pair (clip_l, "
            f"clip_g), or a tensor. {advice}."
        )
    if not all(bool(torch.isfinite(value).all()) for value in vectors.values()):
        raise CheckpointError(
            f"{source} has NaN or infinite values. Its training failed, or it is damaged. Download it again, "
            "or use another."
        )
    return Learned(token, vectors)
