"""The text and the examples of the README, the pages of docs/ and others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """Return the text of a page, such as "README.md" or "docs/masks.md"."""
    return (ROOT / name).read_text(encoding="utf-8")


def examples(text: str, language: str = "python") -> list[str]:
    """Return the blocks of code of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
