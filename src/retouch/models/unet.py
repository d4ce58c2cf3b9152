"""The UNet that predicts noise: Stable Diffusion 1.x and 2.x, SDXL and its refiner.

Given noisy latents, a timestep and what the picture should show, it returns its prediction. It knows nothing
of guidance, schedules or masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.config import Config
from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import ConfigError, InputError
from retouch.models.layers import TimestepEmbedding, sinusoidal_embedding
from retouch.models.unet_blocks import DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS, Level

_ONE_NUMBER_OR_ONE_PER_LEVEL = (
    "layers_per_block",
    "attention_head_dim",
    "transformer_layers_per_block",
    "cross_attention_dim",
    "only_cross_attention",
)


@dataclass(frozen=True)
class UNet2DConditionConfig(Config):
    """Settings under the names and with the defaults of published config.json files.

    Tuples list one value per level, the finest level first; `up_block_types` alone starts at the coarsest.
    """

    neutral: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "mid_block_scale_factor": 1,
        "resnet_out_scale_factor": 1,
        "time_embedding_type": "positional",
    }

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    # In truth the number of heads: the published configs carry the wrong name, and keep it.
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    cross_attention_dim: int | tuple[int, ...] = 1280
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    # Without effect, as in the reference: fused attention keeps its softmax in float32 by itself.
    upcast_attention: bool | None = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        for key, names, supported in (
            ("down_block_types", self.down_block_types, (*DOWN_BLOCKS,)),
            ("mid_block_type", (self.mid_block_type,), (*MID_BLOCKS, None)),
            ("up_block_types", self.up_block_types, (*UP_BLOCKS,)),
            ("addition_embed_type", (self.addition_embed_type,), ("text_time", None)),
        ):
            for name in names:
                if name not in supported:
                    raise ConfigError(
                        f"{key} = {name!r} is not supported by UNet2DConditionModel. Supported: "
                        f"{', '.join(map(str, supported))}. Use a checkpoint that is made of those."
                    )
        count = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types", *_ONE_NUMBER_OR_ONE_PER_LEVEL):
            value = self.per_level(key)
            if len(value) != count or not all(isinstance(entry, int | str) for entry in value):
                raise ConfigError(
                    f"{key} = {getattr(self, key)!r} is not supported by UNet2DConditionModel. Supported: "
                    f"one value for each of block_out_channels = {self.block_out_channels}. Correct the "
                    f"config, or use another checkpoint."
                )
        if self.addition_embed_type == "text_time" and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise ConfigError(
                f"addition_embed_type = 'text_time' came with addition_time_embed_dim = "
                f"{self.addition_time_embed_dim} and projection_class_embeddings_input_dim = "
                f"{self.projection_class_embeddings_input_dim}. Both must be positive. Correct the config."
            )

    def per_level(self, key: str) -> tuple[Any, ...]:
        """A setting's value for each level, also where the config gives one for all."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def levels(self) -> list[Level]:
        """The resolutions of the network, the finest first."""
        channels = self.block_out_channels
        coarsest = len(channels) - 1
        return [
            Level(
                above=channels[max(index - 1, 0)],
                channels=channels[index],
                below=channels[min(index + 1, coarsest)],
                is_finest=index == 0,
                is_coarsest=index == coarsest,
                temb_channels=4 * channels[0],
                layers=self.per_level("layers_per_block")[index],
                groups=self.norm_num_groups,
                eps=self.norm_eps,
                downsample_padding=self.downsample_padding,
                heads=self.per_level("attention_head_dim")[index],
                transformer_layers=self.per_level("transformer_layers_per_block")[index],
                cross_attention_dim=self.per_level("cross_attention_dim")[index],
                use_linear_projection=self.use_linear_projection,
                only_cross_attention=self.per_level("only_cross_attention")[index],
            )
            for index in range(len(channels))
        ]


class UNet2DConditionOutput(NamedTuple):
    """The prediction. A tuple of one as well, so it also serves callers who pass `return_dict=False`."""

    sample: Tensor


class UNet2DConditionModel(Pretrained, nn.Module):
    """Down through the levels, across the middle, and up again with what was kept on the way."""

    config_class = UNet2DConditionConfig
    config: UNet2DConditionConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = config = UNet2DConditionConfig.from_dict(settings)
        levels = config.levels()
        finest, coarsest = levels[0], levels[-1]
        self.conv_in = nn.Conv2d(config.in_channels, finest.channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(
            finest.channels, finest.temb_channels, config.time_cond_proj_dim
        )
        self.add_embedding = None
        if config.projection_class_embeddings_input_dim and config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, finest.temb_channels
            )
        self.down_blocks = nn.ModuleList(
            DOWN_BLOCKS[name](level) for name, level in zip(config.down_block_types, levels, strict=True)
        )
        self.mid_block = MID_BLOCKS[config.mid_block_type](coarsest) if config.mid_block_type else None
        self.up_blocks = nn.ModuleList(
            UP_BLOCKS[name](level) for name, level in zip(config.up_block_types, levels[::-1], strict=True)
        )
        self.conv_norm_out = nn.GroupNorm(finest.groups, finest.channels, eps=finest.eps)
        self.conv_out = nn.Conv2d(finest.channels, config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput:
        """Predict from (batch, in_channels, height, width) latents of any height and width.

        `timestep` is one for all or one per row. The residuals are a ControlNet's: one for each kept tensor,
        in the order of the way down, and one for the middle.
        """
        temb = self.embed_time(sample, timestep, timestep_cond, added_cond_kwargs)
        x = self.conv_in(sample)
        kept = [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb, encoder_hidden_states)
            kept.extend(outputs)
        if self.mid_block is not None:
            x = self.mid_block(x, temb, encoder_hidden_states)
        if down_block_additional_residuals is not None:
            kept = [skip + extra for skip, extra in zip(kept, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        for block in self.up_blocks:
            x = block(x, temb, encoder_hidden_states, kept)
        return UNet2DConditionOutput(self.conv_out(F.silu(self.conv_norm_out(x))))

    def embed_time(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """What all residual blocks are told: the timestep, and for SDXL the pooled text and the sizes."""
        if timestep_cond is not None and self.time_embedding.cond_proj is None:
            raise InputError(
                "timestep_cond was given, but this UNet's time_cond_proj_dim is None: it is not distilled to "
                "take the guidance scale as an input. Leave timestep_cond out."
            )
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        waves = self._sinusoids(timesteps, self.conv_in.out_channels, sample.dtype)
        temb = self.time_embedding(waves, timestep_cond)
        if self.add_embedding is None:
            return temb
        given = added_cond_kwargs or {}
        if "text_embeds" not in given or "time_ids" not in given:
            raise InputError(
                f"added_cond_kwargs has {', '.join(given) or 'nothing'}, but this UNet needs text_embeds "
                f"(the pooled text) and time_ids (the sizes and the crop). Pass both, as SDXL pipelines do."
            )
        text, ids = given["text_embeds"], given["time_ids"]
        sizes = self._sinusoids(ids.flatten(), self.config.addition_time_embed_dim or 0, sample.dtype)
        extra = torch.cat([text, sizes.view(text.shape[0], -1)], dim=-1)
        return temb + self.add_embedding(extra.to(temb.dtype))

    def _sinusoids(self, values: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        return sinusoidal_embedding(values, size, flip_sin_to_cos=flip, freq_shift=shift).to(dtype)
