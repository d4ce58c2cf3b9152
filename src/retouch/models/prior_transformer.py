"""The diffusion prior of Kandinsky 2.2: from a prompt to an image embedding (arXiv:2204.06125, section 2.2).

A causal transformer over the text's states, the text's embedding, the timestep, the noisy image embedding and
a last token, whose output is the prediction. It knows nothing of guidance and schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.models.attention import GELU, Attention, FeedForward
from retouch.models.layers import TimestepEmbedding, sinusoidal_embedding


@dataclass(frozen=True)
class PriorTransformerConfig(Config):
    """The settings, with the names and defaults of published config.json files."""

    neutral: ClassVar[Mapping[str, Any]] = {
        "additional_embeddings": 4,  # the tokens after the text's states, see `forward`
        "added_emb_type": "prd",
        "encoder_hid_proj_type": "linear",
        "time_embed_act_fn": "silu",
    }

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    num_layers: int = 20
    embedding_dim: int = 768
    num_embeddings: int = 77  # tokens of text


class PriorTransformerOutput(NamedTuple):
    """The result. It is also a tuple of one, as callers with `return_dict=False` expect."""

    predicted_image_embedding: Tensor


class PriorBlock(nn.Module):
    """Self-attention, then feed-forward; each normed first and added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads=heads, dim_head=dim // heads, bias=True)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, GELU)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.attn1(self.norm1(tokens), mask=mask) + tokens
        return self.ff(self.norm3(tokens)) + tokens


class PriorTransformer(Pretrained, nn.Module):
    """Predicts the clean image embedding from a noisy one and the text."""

    config_class = PriorTransformerConfig
    config: PriorTransformerConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = PriorTransformerConfig.from_dict(settings)
        heads, width = config.num_attention_heads, config.embedding_dim
        dim = heads * config.attention_head_dim
        self.time_embedding = TimestepEmbedding(dim, dim)
        self.proj_in = nn.Linear(width, dim)
        self.embedding_proj = nn.Linear(width, dim)
        self.encoder_hidden_states_proj = nn.Linear(width, dim)
        self.positional_embedding = nn.Parameter(torch.zeros(1, config.num_embeddings + 4, dim))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.transformer_blocks = nn.ModuleList(PriorBlock(dim, heads) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(dim)
        self.proj_to_clip_embeddings = nn.Linear(dim, width)
        self.clip_mean = nn.Parameter(torch.zeros(1, width))
        self.clip_std = nn.Parameter(torch.zeros(1, width))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        proj_embedding: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> PriorTransformerOutput:
        """Predict from noisy (batch, width) embeddings.

        `proj_embedding` is the text's embedding (batch, width), `encoder_hidden_states` its states
        (batch, tokens, width). `attention_mask` (batch, tokens) is True at the tokens that are not padding;
        without it all tokens attend to each other.
        """
        rows = hidden_states.shape[0]
        timesteps = torch.as_tensor(timestep, device=hidden_states.device).expand(rows)
        waves = sinusoidal_embedding(timesteps, self.proj_in.out_features).to(hidden_states.dtype)
        tokens = torch.cat(
            [
                self.encoder_hidden_states_proj(encoder_hidden_states),
                self.embedding_proj(proj_embedding)[:, None],
                self.time_embedding(waves)[:, None],
                self.proj_in(hidden_states)[:, None],
                self.prd_embedding.expand(rows, -1, -1),
            ],
            dim=1,
        )
        tokens = tokens + self.positional_embedding
        mask = None if attention_mask is None else self._visible(attention_mask.bool(), tokens.shape[1])
        for block in self.transformer_blocks:
            tokens = block(tokens, mask)
        return PriorTransformerOutput(self.proj_to_clip_embeddings(self.norm_out(tokens)[:, -1]))

    @staticmethod
    def _visible(is_text: Tensor, count: int) -> Tensor:
        """Return a mask (batch, 1, count, count): no token attends to later ones or to padding."""
        seen = nn.functional.pad(is_text, (0, count - is_text.shape[1]), value=True)
        every = torch.ones(count, count, dtype=torch.bool, device=is_text.device)
        return (seen[:, None] & every.tril() | every.tril().triu())[:, None]

    def post_process_latents(self, prior_latents: Tensor) -> Tensor:
        """Return image embeddings from denoised latents, which are normalised."""
        device = prior_latents.device  # these belong to no layer, so offloading layers leaves them behind
        return prior_latents * self.clip_std.to(device) + self.clip_mean.to(device)
