"""Builds the optional attention kernel; all else about the package is in pyproject.toml.

Where it cannot be built, the package is installed without it, and torch computes attention.
"""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLASH_ATTENTION = Extension(
    "retouch.models._flash_attention",
    sources=["src/retouch/models/flash_attention.cpp"],
    depends=["src/retouch/models/flash_attention_tile.h"],
    define_macros=[("Py_LIMITED_API", "0x030A0000")],  # one file for Python 3.10 and all that follow
    py_limited_api=True,
    language="c++",
    optional=True,
)


class BuildKernel(build_ext):
    """Compiles with the flags that the compiler understands, and says how it went."""

    def build_extension(self, extension: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            extension.extra_compile_args = ["/O2", "/std:c++17"]
        else:
            extension.extra_compile_args = [
                "-O3",
                "-std=gnu++17",
                "-fno-strict-aliasing",
                "-fvisibility=hidden",
            ]
        super().build_extension(extension)

    def warn(self, message: str) -> None:  # how the base class reports that an optional extension failed
        super().warn(
            f"{message}\nretouch goes without its native attention kernel: torch computes attention, slower. "
            f"To have it, install a C++ compiler and Python's headers, then install retouch anew."
        )


setup(
    ext_modules=[FLASH_ATTENTION],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
