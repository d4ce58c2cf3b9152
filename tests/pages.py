"""The pages of docs/, the README and their like: their text, and the examples in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """The text of a page: "README.md", "docs/masks.md"."""
    return (ROOT / name).read_text(encoding="utf-8")


def examples(text: str, language: str = "python") -> list[str]:
    """Its blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
