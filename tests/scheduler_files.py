"""Files of scheduler configs, written by each library and read by both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from retouch import schedulers
from retouch.schedulers.scheduler import Scheduler


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the names of its class and of its defaults."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def compare_files(name: str, options: Mapping[str, Any], folder: Path) -> None:
    """Check that the reference reads our file, and that we read its file."""
    ours = getattr(schedulers, name)(**options)
    ours.save_pretrained(folder / "ours")
    theirs = getattr(diffusers, name).from_pretrained(folder / "ours")
    assert settings_of(theirs.config) == settings_of(ours.config)

    theirs.save_pretrained(folder / "theirs")
    again = Scheduler.from_pretrained(folder, subfolder="theirs")
    assert type(again) is type(ours)
    assert settings_of(again.config) == settings_of(ours.config)
    written = [
        json.loads((folder / each / "scheduler_config.json").read_text()) for each in ("ours", "theirs")
    ]
    assert {**written[0], "_diffusers_version": ""} == {**written[1], "_diffusers_version": ""}
