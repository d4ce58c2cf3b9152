"""What to do when memory runs out in the middle of an edit: less at once, and say so."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or on an accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def release() -> None:
    """Give back what the failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def with_fallbacks(attempts: Sequence[tuple[str, Callable[[], Result]]]) -> Result:
    """The first attempt that fits into memory. Each has a word for what it does differently."""
    for index, (_, attempt) in enumerate(attempts):
        try:
            return attempt()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) or index + 1 == len(attempts):
                raise
            kept: Any = str(error)
        release()  # outside of `except`, which holds the failed attempt's tensors
        warnings.warn(
            f"Memory ran out ({kept[:120]}). Trying again {attempts[index + 1][0]}; the result may differ a "
            f"little in detail. Close other programs, or give a smaller size=, to avoid it.",
            stacklevel=3,
        )
    raise AssertionError("an attempt returns or raises")
