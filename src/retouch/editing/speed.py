"""The words for how quick an edit is to be, and the settings behind each, any of which may be given apart.

What they cost the picture was measured; docs/speed.md has the figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retouch.errors import InputError

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline

SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": {"steps": 12, "scheduler": "dpm++ 2m trailing", "reuse_deep_features": 2},
    "fast": {"steps": 6, "scheduler": "dpm++ 2m trailing", "reuse_deep_features": 2, "int8": True},
}
# Samplers of checkpoints that were distilled to a few steps of just this sampler.
_DISTILLED = ("LCMScheduler", "TCDScheduler")


def chosen_speed(word: str | None) -> str:
    """The word that was given, else the one in RETOUCH_SPEED, else "exact"."""
    source = "speed" if word is not None else "RETOUCH_SPEED"
    word = word if word is not None else os.environ.get("RETOUCH_SPEED") or "exact"
    if not isinstance(word, str) or word not in SPEEDS:
        raise InputError(
            f"{source}={word!r} is unknown. Accepted are {', '.join(SPEEDS)}. Give one of them, or leave it "
            "out for exact."
        )
    return word


def settings_of(word: str | None, pipeline: Pipeline) -> dict[str, Any]:
    """The settings that a word stands for with this pipeline."""
    word = chosen_speed(word)
    settings: dict[str, Any] = {"speed": word, **SPEEDS[word]}
    if type(pipeline.scheduler).__name__ in _DISTILLED:
        settings = {name: value for name, value in settings.items() if name not in ("steps", "scheduler")}
    if "int8" in settings and pipeline.why_not_int8 is not None:
        del settings["int8"]  # a word is for any machine, so it leaves out what this one has no use for
    return settings
