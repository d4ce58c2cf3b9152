"""Memory that stays with the process during a call, where glibc would return each block to the system.

Each layer's result is a large block. To get it from the system again, page by page and cleared, takes up to a
tenth of a call's time. When the call ends, all kept memory goes back to the system. Other systems' allocators
are left alone, and so is glibc's where the environment configures it.
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

# Parameters of mallopt, and the values that glibc itself reaches in a process that has freed large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_RELEASING = {_TRIM_THRESHOLD: 12 << 20, _MMAP_THRESHOLD: 12 << 20, _MMAP_MAX: 65536}

_lock = threading.Lock()
_calls = 0


@functools.cache
def _glibc() -> Any:
    """Return the C library if its allocator may be configured here, else None."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return ctypes.CDLL(None)


def _set(settings: dict[int, int]) -> None:
    for parameter, value in settings.items():
        _glibc().mallopt(parameter, value)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep freed memory until the last of the running calls ends, in the whole process.

    The environment variable RETOUCH_KEEP_MEMORY=0 switches this off.
    """
    global _calls
    if os.environ.get("RETOUCH_KEEP_MEMORY") == "0" or _glibc() is None:
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
def releasing_memory() -> Iterator[None]:
    """Release freed memory at once inside such a call: huge blocks hardly fit where others have been."""
    with _lock:
        was_kept = _calls > 0
        if was_kept:
            _set(_RELEASING)
            _glibc().malloc_trim(0)
    try:
        yield
    finally:
        with _lock:
            if was_kept:
                _set({**_USUAL, **(_KEEPING if _calls else {})})
