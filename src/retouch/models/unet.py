"""The UNet that predicts noise: Stable Diffusion 1.x and 2.x, SDXL and its refiner, Kandinsky 2.2's decoder.

It predicts from noisy latents, a timestep and the conditioning. It knows nothing of guidance, schedules or
masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.pretrained import Pretrained
from retouch.models.unet_blocks import UP_BLOCKS
from retouch.models.unet_encoder import UNetEncoder, UNetEncoderConfig


@dataclass(frozen=True)
class UNet2DConditionConfig(UNetEncoderConfig):
    """The settings of the encoder and of the decoder. Only `up_block_types` starts at the coarsest level."""

    neutral: ClassVar[Mapping[str, Any]] = {
        **UNetEncoderConfig.neutral,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "resnet_out_scale_factor": 1,
        "time_embedding_type": "positional",
    }

    sample_size: int | tuple[int, int] | None = None
    out_channels: int = 4
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_known("up_block_types", UP_BLOCKS)
        self.require_one_per_level("up_block_types")


class UNet2DConditionOutput(NamedTuple):
    """The prediction. It is also a tuple of one, as callers with `return_dict=False` expect."""

    sample: Tensor


class DeepOutput(NamedTuple):
    """The prediction, and the features below the finest level, which a later call can reuse."""

    sample: Tensor
    deep: Tensor


class UNet2DConditionModel(Pretrained, UNetEncoder):
    """The encoder down to the coarsest level, the middle, and the decoder up again with skip connections."""

    config_class = UNet2DConditionConfig
    config: UNet2DConditionConfig

    def __init__(self, **settings: Any) -> None:
        config = UNet2DConditionConfig.from_dict(settings)
        super().__init__(config, config.time_cond_proj_dim)
        levels = config.levels()
        finest = levels[0]
        self.up_blocks = nn.ModuleList(
            UP_BLOCKS[name](level) for name, level in zip(config.up_block_types, levels[::-1], strict=True)
        )
        self.conv_norm_out = nn.GroupNorm(finest.groups, finest.channels, eps=finest.eps)
        self.conv_out = nn.Conv2d(finest.channels, config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        *,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        deep: Tensor | None = None,
        return_deep: bool = False,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | DeepOutput:
        """Predict from (batch, in_channels, height, width) latents of any height and width.

        `timestep` is one for all or one per row. A model conditioned on an image embedding takes it in
        `added_cond_kwargs`, and no `encoder_hidden_states`; one with IP-Adapters takes both, and a list of
        embeddings. A ControlNet's residuals are one for each skip connection, in the encoder's order, and one
        for the middle. With `deep`, which an earlier call returned for `return_deep`, only the finest level
        is computed.
        """
        temb = self.embed_time(sample, timestep, timestep_cond, added_cond_kwargs)
        context = self.context(encoder_hidden_states, added_cond_kwargs)
        *deeper, finest = self.up_blocks
        x = self.conv_in(sample)
        if deep is None:
            x, kept = self.encode(x, temb, context)
            if mid_block_additional_residual is not None:
                x = x + mid_block_additional_residual
        else:
            _, outputs = self.down_blocks[0](x, temb, context)
            kept = [x, *outputs[: self.config.per_level("layers_per_block")[0]]]  # without the downsampler's
        if down_block_additional_residuals is not None:
            pairs = zip(kept, down_block_additional_residuals, strict=deep is None)
            kept = [skip + extra for skip, extra in pairs]
        if deep is None:
            for block in deeper:
                x = block(x, temb, context, kept)
            deep = x
        x = finest(deep, temb, context, kept)
        prediction = self.conv_out(F.silu(self.conv_norm_out(x)))
        return DeepOutput(prediction, deep) if return_deep else UNet2DConditionOutput(prediction)
