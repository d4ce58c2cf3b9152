"""Attention on a CPU, by the native kernel in flash_attention.cpp where it was built, otherwise by torch.

`attention` accepts any inputs; `supports` tells whether the native kernel computes them. Masks are not
supported: use torch's `scaled_dot_product_attention` for them. The native kernel is an optional part of the
package.

The environment variable RETOUCH_ATTENTION chooses a level: `avx512bf16`, `avx512`, `avx2` or `portable` for
the native kernel with at most these instructions, `torch` for torch's attention. Without it, torch computes
bfloat16 on processors with AMX.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retouch.errors import InputError

_kernel: Any
try:
    _kernel = importlib.import_module("retouch.kernels.cpu._flash_attention")
    _import_error = None
except ImportError as error:  # not built, or for another system
    _kernel = None
    _import_error = str(error)

_NAMES = {"avx512bf16": "AVX512-BF16", "avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}
_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_HEAD = 512


def levels() -> tuple[str, ...]:
    """Return the levels that this processor can run, the fastest first; none if the kernel is not built."""
    return () if _kernel is None else _kernel.levels()


def _chosen_level() -> str | None:
    """Return the level to use; None for torch."""
    wanted = os.environ.get("RETOUCH_ATTENTION", "")
    if wanted in ("", *levels()):
        # The portable level is slower than torch, so it is used only if asked for.
        return wanted or next((level for level in levels() if level != "portable"), None)
    if wanted == "torch":
        return None
    accepted = ", ".join((*levels(), "torch"))
    raise InputError(
        f"RETOUCH_ATTENTION={wanted!r} is not available on this machine. Accepted here: {accepted}. "
        f"Set it to one of those, or unset it for the fastest.",
        parameter="RETOUCH_ATTENTION",
    )


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


_level = _chosen_level()
available: bool = _level is not None
# Torch multiplies bfloat16 with AMX where the processor has it, which the native kernel does not: 85 ms
# against 126 at best for SD 1.5's largest attention.
_leaves_bfloat16 = available and not os.environ.get("RETOUCH_ATTENTION") and _has_amx()


def description() -> str:
    """Return what computes attention on this machine's CPU, or why it is not the native kernel."""
    if _level is not None:
        return f"{_NAMES[_level]} kernel{', torch with AMX for bfloat16' if _leaves_bfloat16 else ''}"
    if os.environ.get("RETOUCH_ATTENTION") == "torch":
        return "torch, as RETOUCH_ATTENTION says"
    if _kernel is None:
        return f"torch: the native kernel is not built ({_import_error})"
    return "torch: the native kernel has no vector instructions for this processor"


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether the native kernel computes these; otherwise `attention` uses torch."""
    if _leaves_bfloat16 and query.dtype == torch.bfloat16:
        return False
    return available and _is_supported(query, key, value)


def _is_supported(*tensors: Tensor) -> bool:
    query, key, value = tensors
    if not (query.ndim == key.ndim == value.ndim == 4 and key.shape == value.shape and 0 not in query.shape):
        return False
    batch, heads, _, dim = query.shape
    return (
        # A subclass may hold something other than numbers in memory.
        all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
        and all(tensor.device.type == "cpu" and tensor.stride(3) == 1 for tensor in tensors)
        and query.dtype in _DTYPES
        and query.dtype == key.dtype == value.dtype
        and key.shape == (batch, heads, key.shape[2], dim)
        and key.shape[2] > 0
        and dim % 8 == 0
        and dim <= _LARGEST_HEAD
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Compute softmax attention of (batch, heads, tokens, dim) views; `scale` is 1 / sqrt(dim) by default.

    The result is a (batch, heads, tokens, dim) view of (batch, tokens, heads, dim)-contiguous memory, so
    `result.transpose(1, 2).flatten(2)` copies nothing.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if _level is None or scale <= 0 or not supports(query, key, value):
        return torch_attention(query, key, value, scale=scale)
    # Called as a torch operation only where torch traces: its first call imports the compiler, which takes a
    # second or two.
    compute = _operation if _is_traced() else _compute
    return compute(query, key, value, _level, scale).transpose(1, 2)


def _is_traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0  # modes that watch each operation, as make_fx does
    )


def attention_at(
    level: str, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    """Compute attention by the native kernel at a given level. For tests and benchmarks."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _operation(query, key, value, level, scale).transpose(1, 2)


def _compute(query: Tensor, key: Tensor, value: Tensor, level: str, scale: float) -> Tensor:
    batch, heads, queries, dim = query.shape
    result = torch.empty(batch, queries, heads, dim, dtype=query.dtype)
    places = (
        (tensor.data_ptr(), *tensor.stride()[:3]) for tensor in (query, key, value, result.transpose(1, 2))
    )
    _kernel.attend(
        levels().index(level),
        query.dtype is torch.bfloat16,
        torch.get_num_threads(),
        scale,
        (batch, heads, queries, key.shape[2], dim),
        *places,
    )
    return result


# As a named operation, torch can trace it and compile it into graphs.
_operation = torch.library.custom_op("retouch::attention", _compute, mutates_args=(), device_types="cpu")


@_operation.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, level: str, scale: float) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def torch_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Compute attention by torch alone."""
    if _is_faster_in_chunks(query, key, value):
        return _in_chunks(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return attended.transpose(1, 2).contiguous().transpose(1, 2)


def _is_faster_in_chunks(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether plain matrix products are faster than torch's own attention.

    They take half of its time if the processor multiplies bfloat16 natively and the attention is not small.
    In float32 they are slower. With matrix units (AMX) torch's attention is faster.
    """
    return (
        not torch.compiler.is_compiling()
        and _is_supported(query, key, value)
        and query.dtype is torch.bfloat16
        and min(query.shape[2], key.shape[2]) >= _CHUNK
        and _has_bfloat16_vectors()
    )


@functools.cache
def _has_bfloat16_vectors() -> bool:
    # Older releases of torch do not have it.
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    capabilities = get_capabilities() if get_capabilities else {}
    return capabilities.get("avx512_bf16") is True and capabilities.get("amx_bf16") is not True


_CHUNK, _CHUNK_HEADS = 256, 2  # the scores of 256 queries of 2 heads fit in the cache


def _in_chunks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention as two matrix products and a softmax, for a part of the queries at a time."""
    batch, heads, queries, dim = query.shape
    result = torch.empty(batch, queries, heads, dim, dtype=query.dtype).transpose(1, 2)
    # Scaled in float32, so that the queries are rounded only once.
    query = (query.float() * scale).to(query.dtype)
    for row in range(batch):
        for head in range(0, heads, _CHUNK_HEADS):
            some = slice(head, head + _CHUNK_HEADS)
            keys, values = key[row, some].transpose(1, 2).contiguous(), value[row, some].contiguous()
            for first in range(0, queries, _CHUNK):
                part = slice(first, first + _CHUNK)
                weights = torch.bmm(query[row, some, part], keys).softmax(-1)
                result[row, some, part] = torch.bmm(weights, values)
    return result
