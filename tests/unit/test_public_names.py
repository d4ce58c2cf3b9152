from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import retouch
from retouch.pipelines import compat


@pytest.mark.parametrize("name", retouch.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(retouch)
    value = getattr(retouch, name)
    if isinstance(value, type):
        assert value.__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = retouch.no_such_name


def test_editors_see_what_there_is_at_run_time() -> None:
    """The stub names each module; the pipeline classes come from the registry at run time."""
    tree = ast.parse(Path(str(retouch.__file__)).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: str(node.module) for node in imports for alias in node.names if alias.name != "*"}
    modules |= dict.fromkeys(compat.__all__, compat.__name__)
    assert {"__version__", *modules} == set(retouch.__all__)
    for name, module in modules.items():
        assert getattr(import_module(module), name) is getattr(retouch, name)


def test_importing_the_package_leaves_torch_alone() -> None:
    program = (
        "import sys, retouch; print(*sorted({'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
