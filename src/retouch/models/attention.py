"""Attention over tokens, and the transformer that UNets run at each resolution.

All attention is computed by `scaled_dot_product_attention`, which picks a memory-efficient kernel if the
device has one and computes the softmax in float32 there. So slicing and a switch for upcasting are not
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """Return a map (batch, channels, height, width) as tokens (batch, height * width, channels), a view."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Return tokens (batch, height * width, channels) as a map (batch, channels, height, width), a view."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Attention(nn.Module):
    """Multi-head attention from tokens to a context, or among the tokens themselves without one.

    A mask is (batch, 1, tokens, context) and True where a token may attend to a context token.
    """

    # Takes (batch, heads, tokens, dim_head) and attn_mask. An instance may have a faster one.
    kernel: Callable[..., Tensor] = staticmethod(F.scaled_dot_product_attention)

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        *,
        heads: int,
        dim_head: int,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim))  # a list of one: the key is to_out.0

    def forward(self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        return self.attend(self.to_q(tokens), self.to_k(context), self.to_v(context), mask=mask)

    def attend(self, *projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention result of queries, keys and values, each (batch, tokens, heads * dim_head)."""
        return self.to_out(self.attended(*projected, mask=mask))

    def attended(self, *projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attended values, before the output layer."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, dim_head)
            for part in projected
        )
        attended = self.kernel(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class SpatialAttention(Attention):
    """One head of self-attention among the pixels of a feature map, as in the middle of an autoencoder."""

    def __init__(self, channels: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, heads=1, dim_head=channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x + to_map(super().forward(to_tokens(self.group_norm(x))), x.shape[2:])


class AddedContextAttention(Attention):
    """Attention of a feature map's pixels to a context and, at the same time, among themselves."""

    def __init__(self, channels: int, context_dim: int, *, heads: int, dim_head: int, groups: int) -> None:
        super().__init__(channels, heads=heads, dim_head=dim_head, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels)
        self.add_k_proj = nn.Linear(context_dim, heads * dim_head)
        self.add_v_proj = nn.Linear(context_dim, heads * dim_head)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        tokens = to_tokens(self.group_norm(x))
        key = torch.cat([self.add_k_proj(context), self.to_k(tokens)], dim=1)
        value = torch.cat([self.add_v_proj(context), self.to_v(tokens)], dim=1)
        return to_map(self.attend(self.to_q(tokens), key, value), x.shape[2:]) + x


class GELU(nn.Module):
    """A linear layer and its activation, which are one entry in a checkpoint."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class GEGLU(nn.Module):
    """A linear layer, half of whose outputs gate the other half."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The transformer's two layers, four times as wide inside; the activation is gated in a UNet."""

    def __init__(self, dim: int, activation: type[GEGLU] | type[GELU] = GEGLU) -> None:
        super().__init__()
        # The identity is a dropout in the original, and counts in the checkpoint's keys.
        self.net = nn.Sequential(activation(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each normed first and added to its input."""

    def __init__(
        self, dim: int, *, heads: int, cross_attention_dim: int, only_cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(
            dim, cross_attention_dim if only_cross_attention else None, heads=heads, dim_head=dim // heads
        )
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, cross_attention_dim, heads=heads, dim_head=dim // heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        # The new summand first: the sum takes its memory layout, and `tokens` may be a transposed view.
        tokens = self.attn1(self.norm1(tokens), text if self.only_cross_attention else None) + tokens
        tokens = self.attn2(self.norm2(tokens), text) + tokens
        return self.ff(self.norm3(tokens)) + tokens


def _projection(channels: int, use_linear: bool) -> nn.Module:
    # Both compute the same; SD 1.x stores a convolution, SD 2.x and SDXL a linear layer.
    return nn.Linear(channels, channels) if use_linear else nn.Conv2d(channels, channels, 1)


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections and a shortcut."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        num_layers: int,
        cross_attention_dim: int,
        groups: int,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = _projection(channels, use_linear_projection)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                channels,
                heads=heads,
                cross_attention_dim=cross_attention_dim,
                only_cross_attention=only_cross_attention,
            )
            for _ in range(num_layers)
        )
        self.proj_out = _projection(channels, use_linear_projection)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        linear, size = self.use_linear_projection, x.shape[2:]
        h = self.norm(x)
        tokens = self.proj_in(to_tokens(h)) if linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        h = to_map(self.proj_out(tokens), size) if linear else self.proj_out(to_map(tokens, size))
        return x + h  # in this order the sum keeps the memory layout of x
