"""Faster computation of models on this machine. Other folders import this file and nothing below it.

`optimize` replaces a model's layers by optimized ones that give the same results up to rounding; `restore`
undoes it. The model stays the same object with the same names, parameters and state dict. On a CPU the
optimized layers come from `cpu/`; on a GPU a UNet's calls can be recorded by `cuda/`.
"""

from __future__ import annotations

import gc

import torch

from retouch.kernels.cpu import attention, int8, onednn
from retouch.kernels.cpu.allocator import keeping_memory
from retouch.kernels.cpu.int8 import int8_copy, int8_refusal
from retouch.kernels.cpu.packed_weights import weight_samples
from retouch.kernels.cuda.graphs import forget_recordings
from retouch.kernels.optimization import is_optimized, optimize, restore

__all__ = [
    "description",
    "int8_copy",
    "int8_refusal",
    "is_optimized",
    "keeping_memory",
    "optimize",
    "release_memory",
    "restore",
    "weight_samples",
]


def release_memory() -> None:
    """Drop recorded calls and unreachable objects, and return cached memory of accelerators to the system."""
    forget_recordings()
    gc.collect()
    for kind in ("cuda", "xpu", "mps"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            module.empty_cache()


def description() -> str:
    """Return one line that names the kernels for this machine's CPU."""
    layers = "oneDNN" if onednn.is_available() else "torch"
    products = "with VNNI" if int8.is_available() else "not available"
    return f"layers: {layers}; attention: {attention.description()}; 8 bits: {products}"
