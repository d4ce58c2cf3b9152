"""Write the version of every installed package to a constraints file, for `make constraints`."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

HEADER = """\
# The exact versions that CI ran, on Python 3.11 and Linux. Do not edit: `make constraints` writes this file
# from a clean environment with `.[dev]`. Packages that need Python 3.11 are not pinned on Python 3.10.
"""
NOT_PINNED = {"retouch", "pip"}


def pins() -> list[str]:
    """Return a constraint for each package, sorted by name."""
    lines = {}
    for package in distributions():
        name = package.metadata["Name"].lower().replace("_", "-")
        if name in NOT_PINNED:
            continue
        version = package.version.partition("+")[0]  # "+cpu" in torch's version names a build
        runs_on = SpecifierSet(package.metadata.get("Requires-Python") or "")
        lines[name] = f"{name}=={version}" + ("" if "3.10.99" in runs_on else ' ; python_version >= "3.11"')
    return [lines[name] for name in sorted(lines)]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(HEADER + "\n".join(pins()) + "\n", encoding="utf-8")
