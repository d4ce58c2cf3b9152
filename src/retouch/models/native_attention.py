"""Attention on a CPU, faster than torch's: by a kernel of our own where it was built, else by torch.

`attention` always answers; `supports` says whether the kernel would do it. There are no masks: whoever has
one calls torch's `scaled_dot_product_attention`. The kernel is `flash_attention.cpp`, an optional part of the
package.

The environment variable RETOUCH_ATTENTION chooses a level: `avx512bf16`, `avx512`, `avx2` or `portable` for
the kernel with at most these instructions, `torch` to do without the kernel.
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
    _kernel = importlib.import_module("retouch.models._flash_attention")
    _fault = None
except ImportError as error:  # not built, or for another system
    _kernel = None
    _fault = str(error)

_NAMES = {"avx512bf16": "AVX512-BF16", "avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}
_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_HEAD = 512


def levels() -> tuple[str, ...]:
    """The levels that this processor can run, the best first; none if the kernel is not built."""
    return () if _kernel is None else _kernel.levels()


def _chosen_level() -> str | None:
    """The level to use; None for torch."""
    wanted = os.environ.get("RETOUCH_ATTENTION", "")
    if wanted in ("", *levels()):
        # Without vectors of its own for this processor, the kernel does not beat torch.
        return wanted or next((level for level in levels() if level != "portable"), None)
    if wanted == "torch":
        return None
    accepted = ", ".join((*levels(), "torch"))
    raise InputError(
        f"RETOUCH_ATTENTION={wanted!r} cannot be had here. On this machine it may be: {accepted}. "
        f"Set it to one of those, or unset it for the fastest."
    )


_level = _chosen_level()
available: bool = _level is not None


def description() -> str:
    """What computes attention on this machine's CPU, or why it is not the native kernel."""
    if _level is not None:
        return f"{_NAMES[_level]} kernel"
    if os.environ.get("RETOUCH_ATTENTION") == "torch":
        return "torch, as RETOUCH_ATTENTION says"
    if _kernel is None:
        return f"torch: the native kernel is not built ({_fault})"
    return "torch: the native kernel knows no vectors of this processor"


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these; if not, `attention` has torch compute them."""
    return available and _suits(query, key, value)


def _suits(*tensors: Tensor) -> bool:
    query, key, value = tensors
    if not (query.ndim == key.ndim == value.ndim == 4 and key.shape == value.shape and 0 not in query.shape):
        return False
    batch, heads, _, dim = query.shape
    return (
        # Subclasses may stand for something else than numbers in memory.
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
    """Softmax attention of (batch, heads, tokens, dim) views; `scale` is 1 / sqrt(dim) if not given.

    The result is a (batch, heads, tokens, dim) view of (batch, tokens, heads, dim)-contiguous memory, so
    `result.transpose(1, 2).flatten(2)` copies nothing.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if _level is None or scale <= 0 or not supports(query, key, value):
        return torch_attention(query, key, value, scale=scale)
    # Where nobody records, without the operation's wrapping: its first call imports the compiler, which
    # takes a second or two.
    compute = _operation if _is_recorded() else _compute
    return compute(query, key, value, _level, scale).transpose(1, 2)


def _is_recorded() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0  # modes that watch each operation, as make_fx does
    )


def attention_at(
    level: str, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    """What `attention` returns, by the kernel of a given level. For tests and benchmarks."""
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


# As an operation that torch knows by name, it can be traced and compiled into graphs.
_operation = torch.library.custom_op("retouch::attention", _compute, mutates_args=(), device_types="cpu")


@_operation.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, level: str, scale: float) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def torch_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """What `attention` returns, by torch alone."""
    if _pays_in_chunks(query, key, value):
        return _in_chunks(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return attended.transpose(1, 2).contiguous().transpose(1, 2)


def _pays_in_chunks(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether plain products of matrices beat torch's own attention.

    They take half of its time where a processor multiplies bfloat16 natively and the attention is not small.
    In float32 they are slower. Where there are matrix units (AMX), torch's attention uses them.
    """
    return (
        not torch.compiler.is_compiling()
        and _suits(query, key, value)
        and query.dtype is torch.bfloat16
        and min(query.shape[2], key.shape[2]) >= _CHUNK
        and _has_bfloat16_vectors()
    )


@functools.cache
def _has_bfloat16_vectors() -> bool:
    # Older releases of torch cannot say.
    query = getattr(torch.cpu, "get_capabilities", None)
    abilities = query() if query else {}
    return abilities.get("avx512_bf16") is True and abilities.get("amx_bf16") is not True


_CHUNK, _CHUNK_HEADS = 256, 2  # scores of so many queries of so many heads at a time stay in the cache


def _in_chunks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention as two products of matrices and a softmax, for a part of the queries at a time."""
    batch, heads, queries, dim = query.shape
    result = torch.empty(batch, queries, heads, dim, dtype=query.dtype).transpose(1, 2)
    # The factor goes to the queries while they are float32: a power of 2 or not, they are rounded once.
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
