"""Build the optional C++ parts; everything else about the package is in pyproject.toml.

If one cannot be built, the package is installed without it: torch computes attention then, and holes are
filled by slower code.
"""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LIMITED_API = [("Py_LIMITED_API", "0x030A0000")]  # one file for Python 3.10 and all later versions

FLASH_ATTENTION = Extension(
    "retouch.kernels.cpu._flash_attention",
    sources=["src/retouch/kernels/cpu/flash_attention.cpp"],
    depends=["src/retouch/kernels/cpu/flash_attention_tile.h"],
    define_macros=LIMITED_API,
    py_limited_api=True,
    language="c++",
    optional=True,
)
PATCH_FILL = Extension(
    "retouch.images._patch_fill",
    sources=["src/retouch/images/patch_fill.cpp"],
    define_macros=LIMITED_API,
    py_limited_api=True,
    language="c++",
    optional=True,
)


class BuildKernel(build_ext):
    """A build that passes each compiler its own flags, and explains a failure."""

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

    def warn(self, message: str) -> None:  # the base class reports the failure of an optional extension here
        super().warn(
            f"{message}\nretouch is installed without this part, and slower code is used instead. To build "
            f"it, install a C++ compiler and Python's headers, then install retouch again."
        )


setup(
    ext_modules=[FLASH_ATTENTION, PATCH_FILL],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
