"""Speed presets: the options that each stands for. An option that is given itself counts more.

Their effect on the picture was measured; see docs/speed.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retouch.pipelines.pipeline import Pipeline

SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": {"steps": 12, "scheduler": "dpm++ 2m trailing", "reuse_deep_features": 2},
    "fast": {"steps": 6, "scheduler": "dpm++ 2m trailing", "reuse_deep_features": 2, "int8": True},
}
# Samplers of checkpoints that were distilled to a few steps of this sampler and no other.
_DISTILLED = ("LCMScheduler", "TCDScheduler")


def preset(speed: Any, pipeline: Pipeline) -> dict[str, Any]:
    """Return the options that a speed preset stands for with this pipeline, its name among them.

    None means the one that RETOUCH_SPEED names, or "exact". An unknown name is left to `Options` to refuse.
    """
    if speed is None:
        speed = os.environ.get("RETOUCH_SPEED") or "exact"
    options = {"speed": speed, **next((SPEEDS[name] for name in SPEEDS if name == speed), {})}
    if type(pipeline.scheduler).__name__ in _DISTILLED:
        options = {name: value for name, value in options.items() if name not in ("steps", "scheduler")}
    if "int8" in options and pipeline.why_not_int8 is not None:
        del options["int8"]  # presets work on any machine, so this one does without
    return options
