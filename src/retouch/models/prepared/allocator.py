"""Large blocks of memory stay with the process during a call, where glibc would give each back at once.

Every layer's result is such a block. To have it from the system again, page by page and cleared, takes up to
a tenth of a call's time. The call ends with all of it given back. Other systems' allocators are left alone,
and so is one that the environment has settings for.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# mallopt's parameters, and what glibc comes to by itself in a process that has freed large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_GIVING_BACK = {_TRIM_THRESHOLD: 12 << 20, _MMAP_THRESHOLD: 12 << 20, _MMAP_MAX: 65536}

_lock = threading.Lock()
_calls = 0


@functools.cache
def _glibc() -> Any:
    """The C library, if it is one whose allocator can be told."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return ctypes.CDLL(None)


def _set(settings: dict[int, int]) -> None:
    for parameter, value in settings.items():
        _glibc().mallopt(parameter, value)


@contextmanager
def keeping_blocks() -> Iterator[None]:
    """Keep what is freed until the last of the calls that are under way ends. It is the whole process's."""
    global _calls
    if _glibc() is None:
        yield
        return
    with _lock:
        _calls += 1
        if _calls == 1:
            _set(_KEEPING)
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _set(_USUAL)
                _glibc().malloc_trim(0)


@contextmanager
def giving_back() -> Iterator[None]:
    """Within such a call, give back at once: for huge blocks, which hardly fit where others have been."""
    with _lock:
        was_kept = _calls > 0
        if was_kept:
            _set(_GIVING_BACK)
            _glibc().malloc_trim(0)
    try:
        yield
    finally:
        with _lock:
            if was_kept:
                _set({**_USUAL, **(_KEEPING if _calls else {})})
