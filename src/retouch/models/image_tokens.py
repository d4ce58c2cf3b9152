"""The projections of IP-Adapters from an image to tokens: three kinds, recognised by their keys.

Attribute names are the keys of published files. What attends to the tokens is in ip_adapter.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.ip_adapter import IPAdapterFile
from retouch.errors import CheckpointError


class ImageTokens(nn.Module):
    """IP-Adapter: an image's embedding as a few tokens."""

    reads_states = False  # of the image encoder, all states of one layer before the last

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        outputs, self.reads = shapes["proj.weight"]
        (self.width,) = shapes["norm.weight"]
        self.proj = nn.Linear(self.reads, outputs)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm(self.proj(embeds).unflatten(-1, (-1, self.width)))


class FullImageTokens(nn.Module):
    """IP-Adapter Full Face: each state of the image encoder as a token."""

    reads_states = True

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        inner, self.reads = shapes["proj.0.weight"]
        self.width = shapes["proj.2.weight"][0]
        self.proj = nn.Sequential(
            nn.Linear(self.reads, inner), nn.GELU(), nn.Linear(inner, self.width), nn.LayerNorm(self.width)
        )

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(states)


class PerceiverAttention(nn.Module):
    """Attention of a resampler's tokens to an image's states, and among themselves."""

    HEAD = 64

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        normed = self.norm2(tokens)
        projected = self.to_q(normed), *self.to_kv(torch.cat([self.norm1(states), normed], 1)).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (-1, self.HEAD)).transpose(1, 2) for part in projected)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """IP-Adapter Plus: learned tokens that gather what matters from the image encoder's states."""

    reads_states = True

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        _, tokens, dim = shapes["latents"]
        self.width, self.reads = shapes["proj_out.weight"][0], shapes["proj_in.weight"][1]
        depth = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
        inner, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.latents = nn.Parameter(torch.empty(1, tokens, dim))
        self.proj_in = nn.Linear(self.reads, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, inner),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, hidden, bias=False),
                        nn.GELU(),
                        nn.Linear(hidden, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, self.width)
        self.norm_out = nn.LayerNorm(self.width)

    def forward(self, states: Tensor) -> Tensor:
        states, tokens = self.proj_in(states), self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            attend, feed_forward = layer.children()
            tokens = attend(states, tokens) + tokens
            tokens = feed_forward(tokens) + tokens
        return self.norm_out(self.proj_out(tokens))


def image_tokens(file: IPAdapterFile) -> nn.Module:
    """Return the module whose attribute names are the file's keys."""
    shapes = {key: tuple(tensor.shape) for key, tensor in file.projection.items()}
    kind: type[ImageTokens | FullImageTokens | Resampler] = Resampler
    if "proj.weight" in shapes:
        kind = ImageTokens
    elif "proj.3.weight" in shapes:
        kind = FullImageTokens
    try:
        with torch.device("meta"):
            module = kind(shapes)
        wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        wrong = [key for key in {**wanted, **shapes} if wanted.get(key) != shapes.get(key)]
    except KeyError as error:
        wrong = [str(error.args[0])]
    except (ValueError, IndexError):
        wrong = list(shapes)
    if wrong:
        raise CheckpointError(
            f"{file.source} has tensors missing, too many or of the wrong shape in its image_proj: "
            f"{', '.join(sorted(wrong)[:3])}. Those of IP-Adapter, Plus or Full Face are expected. "
            "Download it again, or use another."
        )
    module.load_state_dict(dict(file.projection), assign=True)
    return module.eval()
