"""retouch: inpainting with diffusion models.

The public names stand in __init__.pyi. Each is imported at its first use, so `import retouch` is quick and
torch comes with the first model. Pipeline classes come from the registry of families.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0.dev0"


def _listed_names() -> dict[str, str]:
    """Return the module of each name that __init__.pyi imports."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names if alias.name != "*"}


def _family_names() -> list[str]:
    """Return the names of the families' pipeline classes."""
    from retouch.families.registry import rows

    return [name for row in rows() for name in row.class_names]


_HOMES = _listed_names()


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return ["__version__", *_HOMES, *_family_names()]
    home = _HOMES.get(name)
    if home is None and name[:1].isupper():
        from retouch.families.registry import home_of_class

        home = home_of_class(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
    globals()[name] = value  # so that this runs once for each name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), "__all__", *_HOMES, *_family_names()})
