"""Attention on a CPU, faster than torch's: by a kernel of our own where it was built, else by torch.

`attention` always answers; `supports` says whether our kernel would do it. No masks: whoever has one calls
torch's `scaled_dot_product_attention`, and so does whoever wants gradients.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

available = False


def description() -> str:
    """What computes attention on this machine's CPU, or why it is not the native kernel."""
    return "torch: the native kernel is not built"


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the native kernel takes these; if not, torch computes them."""
    return False


def attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Softmax attention of (batch, heads, tokens, dim) views; the result is laid out by tokens.

    That is, it is a (batch, heads, tokens, dim) view of (batch, tokens, heads, dim)-contiguous memory, so
    `result.transpose(1, 2).flatten(2)` copies nothing.
    """
    attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return attended.transpose(1, 2).contiguous().transpose(1, 2)


__all__ = ["attention", "available", "description", "supports"]
