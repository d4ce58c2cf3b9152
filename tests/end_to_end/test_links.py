"""Links between the pages lead to files and headings that are there."""

from __future__ import annotations

import re

import pytest
from pages import ROOT, page

FOLDERS = ("", "benchmarks", "docs", "examples", "src/retouch/checkpoints/tokenizers", "training")
PAGES = sorted(
    file.relative_to(ROOT).as_posix() for folder in FOLDERS for file in (ROOT / folder).glob("*.md")
)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """What a browser jumps to on the pages that a host of code makes of Markdown."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = ROOT / name
    dead = []
    for target, anchor in LINK.findall(page(name)):
        there = here.parent / target if target else here
        if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            dead.append(f"{target}#{anchor}")
    assert dead == []


def test_there_are_links() -> None:
    found = [link for name in PAGES for link in LINK.findall(page(name))]
    assert len(found) > 50 and sum(bool(anchor) for _, anchor in found) > 5
    assert {"README.md", "CHANGELOG.md", "docs/speed.md", "training/README.md"} <= set(PAGES)
    assert anchors("# One\n```sh\n# two\n```\n## What `it` is: a-b") == {"one", "what-it-is-a-b"}
