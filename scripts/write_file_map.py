"""Write the table of source files into CONTRIBUTING.md, from the first sentence of each file's docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "retouch"
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- file map -->", "<!-- end of the file map -->"


def first_sentence(path: Path) -> str:
    """Return the first sentence of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?=\s|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


def table() -> str:
    """Return the table: a heading for each folder, a row for each file."""
    lines = []
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    for folder in folders:
        files = [path for path in sorted(folder.glob("*.py")) if first_sentence(path)]
        files = [path for path in files if path.name != "__init__.py" or folder == PACKAGE]
        if files:
            name = folder.relative_to(ROOT / "src").as_posix()
            lines += ["", f"| `{name}/` | |", "|---|---|"]
            lines += [f"| `{path.name}` | {first_sentence(path)} |" for path in files]
    return "\n".join(lines).strip()


def with_map(page: str) -> str:
    """Return the page with the present table between its two marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
