"""The safety checker of Stable Diffusion 1.x: it reports whether a picture resembles one of 17 concepts.

It only reports; the caller decides about a flagged picture. It derives from transformers' base class because
its vision tower and its file are of that library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel


class StableDiffusionSafetyChecker(PreTrainedModel):
    """CLIP's vision tower against fixed embeddings, each with its own threshold."""

    config_class = CLIPConfig
    main_input_name = "clip_input"
    # The published file nests the tower one level deeper than transformers 5 does.
    _checkpoint_conversion_mapping = {r"^vision_model\.vision_model\.": "vision_model."}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.projection_dim
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(17, width), requires_grad=False)
        self.special_care_embeds = nn.Parameter(torch.ones(3, width), requires_grad=False)
        self.concept_embeds_weights = nn.Parameter(torch.ones(17), requires_grad=False)
        self.special_care_embeds_weights = nn.Parameter(torch.ones(3), requires_grad=False)
        self.post_init()

    @torch.no_grad()
    def forward(self, clip_input: Tensor) -> list[bool]:
        """Return for each picture whether any concept is nearer than its threshold.

        A picture near one of the three special concepts is judged more strictly by the others.
        """
        embeds = self.visual_projection(self.vision_model(clip_input)[1])
        special = _closeness(embeds, self.special_care_embeds) - self.special_care_embeds_weights.float()
        stricter = 0.01 * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        concepts = _closeness(embeds, self.concept_embeds) - self.concept_embeds_weights.float() + stricter
        return (concepts.round(decimals=3) > 0).any(dim=1).tolist()


def _closeness(embeds: Tensor, concepts: Tensor) -> Tensor:
    normalize = nn.functional.normalize
    return (normalize(embeds) @ normalize(concepts).T).float()
