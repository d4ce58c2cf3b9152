"""The encoder and the middle, which a UNet and a ControlNet share, and their settings.

The use of the kept tensors is in unet.py and controlnet.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retouch.checkpoints.config import Config
from retouch.errors import ConfigError, InputError
from retouch.models.layers import (
    ImageProjection,
    ImageTimeEmbedding,
    TimestepEmbedding,
    sinusoidal_embedding,
)
from retouch.models.unet_blocks import DOWN_BLOCKS, MID_BLOCKS, Level

_ONE_NUMBER_OR_ONE_PER_LEVEL = (
    "layers_per_block",
    "attention_head_dim",
    "transformer_layers_per_block",
    "cross_attention_dim",
    "only_cross_attention",
)


@dataclass(frozen=True)
class UNetEncoderConfig(Config):
    """The settings, with the names and defaults of published config.json files.

    Tuples list one value per level, the finest level first.
    """

    neutral: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "mid_block_scale_factor": 1,
    }

    in_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    # In truth the number of heads, but for the simple attention blocks: the published configs carry the wrong
    # name, and keep it.
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    cross_attention_dim: int | tuple[int, ...] = 1280
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    # Without effect, as in the reference: fused attention keeps its softmax in float32 by itself.
    upcast_attention: bool | None = False
    resnet_time_scale_shift: str = "default"
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        self.require_known("down_block_types", DOWN_BLOCKS)
        self.require_known("mid_block_type", (*MID_BLOCKS, None))
        self.require_known("resnet_time_scale_shift", ("default", "scale_shift"))
        self.require_known("encoder_hid_dim_type", ("image_proj", None))
        self.require_known("addition_embed_type", ("text_time", "image", None))
        for key in ("down_block_types", *_ONE_NUMBER_OR_ONE_PER_LEVEL):
            self.require_one_per_level(key)
        if self.addition_embed_type == "text_time" and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise ConfigError(
                f"addition_embed_type = 'text_time' came with addition_time_embed_dim = "
                f"{self.addition_time_embed_dim} and projection_class_embeddings_input_dim = "
                f"{self.projection_class_embeddings_input_dim}. Both must be positive. Correct the config.",
                parameter="addition_embed_type",
            )
        sees_images = self.encoder_hid_dim_type == "image_proj" or self.addition_embed_type == "image"
        if sees_images and not (self.encoder_hid_dim and isinstance(self.cross_attention_dim, int)):
            raise ConfigError(
                f"encoder_hid_dim = {self.encoder_hid_dim} and cross_attention_dim = "
                f"{self.cross_attention_dim} came with encoder_hid_dim_type = {self.encoder_hid_dim_type!r} "
                f"and addition_embed_type = {self.addition_embed_type!r}. Both must be one positive number. "
                "Correct the config.",
                parameter="encoder_hid_dim",
            )

    @property
    def _model(self) -> str:
        return type(self).__name__.replace("Config", "Model")

    def require_known(self, key: str, supported: Iterable[str | None]) -> None:
        """Refuse names that are not among the known ones."""
        value, supported = getattr(self, key), list(supported)
        for name in value if isinstance(value, tuple) else (value,):
            if name not in supported:
                raise ConfigError(
                    f"{key} = {name!r} is not supported by {self._model}. Supported: "
                    f"{', '.join(map(str, supported))}. Use a checkpoint that is made of those.",
                    parameter=key,
                )

    def require_one_per_level(self, key: str) -> None:
        """Refuse a setting that has neither one value for all levels nor one for each."""
        value = self.per_level(key)
        if len(value) != len(self.block_out_channels) or not all(
            isinstance(entry, int | str) for entry in value
        ):
            raise ConfigError(
                f"{key} = {getattr(self, key)!r} is not supported by {self._model}. Supported: "
                f"one value for each of block_out_channels = {self.block_out_channels}. Correct the "
                f"config, or use another checkpoint.",
                parameter=key,
            )

    def per_level(self, key: str) -> tuple[Any, ...]:
        """Return a setting's value for each level, also where the config gives one for all."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def levels(self) -> list[Level]:
        """Return the resolutions of the network, the finest first."""
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
                attention_head_dim=self.per_level("attention_head_dim")[index],
                transformer_layers=self.per_level("transformer_layers_per_block")[index],
                cross_attention_dim=self.per_level("cross_attention_dim")[index],
                use_linear_projection=self.use_linear_projection,
                only_cross_attention=self.per_level("only_cross_attention")[index],
                scale_shift=self.resnet_time_scale_shift == "scale_shift",
            )
            for index in range(len(channels))
        ]


class UNetEncoder(nn.Module):
    """The encoder from latents to the coarsest level, and the middle."""

    config: Any

    def __init__(self, config: UNetEncoderConfig, time_cond_proj_dim: int | None = None) -> None:
        super().__init__()
        self.config = config
        levels = config.levels()
        finest, coarsest = levels[0], levels[-1]
        self.conv_in = nn.Conv2d(config.in_channels, finest.channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(finest.channels, finest.temb_channels, time_cond_proj_dim)
        self.add_embedding: nn.Module | None = None
        if config.projection_class_embeddings_input_dim and config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, finest.temb_channels
            )
        elif config.encoder_hid_dim and config.addition_embed_type == "image":
            self.add_embedding = ImageTimeEmbedding(config.encoder_hid_dim, finest.temb_channels)
        self.encoder_hid_proj: nn.Module | None = None
        if config.encoder_hid_dim and config.encoder_hid_dim_type == "image_proj":
            self.encoder_hid_proj = ImageProjection(config.encoder_hid_dim, finest.cross_attention_dim)
        self.down_blocks = nn.ModuleList(
            DOWN_BLOCKS[name](level) for name, level in zip(config.down_block_types, levels, strict=True)
        )
        self.mid_block = MID_BLOCKS[config.mid_block_type](coarsest) if config.mid_block_type else None

    def context(self, text: Tensor | None, added_cond_kwargs: Mapping[str, Any] | None = None) -> Any:
        """Return the context that the blocks attend to: the text's states, tokens of an image, or both.

        Both need an IP-Adapter, which puts `encoder_hid_proj` and matching attention layers into the model.
        """
        if isinstance(self.encoder_hid_proj, ImageProjection):
            return self.encoder_hid_proj(*_added(added_cond_kwargs, "image_embeds"))
        if text is None:
            raise InputError(
                "encoder_hidden_states was not given, but this model attends to the text's states. Pass the "
                "text encoder's output.",
                parameter="encoder_hidden_states",
            )
        if self.encoder_hid_proj is not None:
            (embeds,) = _added(added_cond_kwargs, "image_embeds")
            return self.encoder_hid_proj(text, embeds, (added_cond_kwargs or {}).get("image_weighting"))
        return text

    def encode(self, x: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output of the middle, and the tensors kept on the way to it, `x` first."""
        kept = [x]
        for block in self.down_blocks:
            x, outputs = block(x, temb, context)
            kept.extend(outputs)
        if self.mid_block is not None:
            x = self.mid_block(x, temb, context)
        return x, kept

    def embed_time(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the embedding of the timestep for all residual blocks, with the family's additions.

        SDXL adds the pooled text and the sizes, Kandinsky 2.2 the image embedding. The result has one row if
        it is the same for all rows of the batch.
        """
        if timestep_cond is not None and self.time_embedding.cond_proj is None:
            raise InputError(
                "timestep_cond was given, but this model's time_cond_proj_dim is None: it is not distilled "
                "to take the guidance scale as an input. Leave timestep_cond out.",
                parameter="timestep_cond",
            )
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        waves = self._sinusoids(timesteps, self.conv_in.out_channels, sample.dtype)
        temb = self.time_embedding(waves, timestep_cond)
        if self.add_embedding is None:
            return temb
        if self.config.addition_embed_type == "image":
            return temb + self.add_embedding(*_added(added_cond_kwargs, "image_embeds"))
        text, ids = _added(added_cond_kwargs, "text_embeds", "time_ids")
        sizes = self._sinusoids(ids.flatten(), self.config.addition_time_embed_dim or 0, sample.dtype)
        extra = torch.cat([text, sizes.view(text.shape[0], -1)], dim=-1)
        return temb + self.add_embedding(extra.to(temb.dtype))

    def _sinusoids(self, values: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        return sinusoidal_embedding(values, size, flip_sin_to_cos=flip, freq_shift=shift).to(dtype)


_ADDED = {
    "text_embeds": "the pooled text",
    "time_ids": "the sizes and the crop",
    "image_embeds": "the image embedding",
}


def _added(given: Mapping[str, Tensor] | None, *names: str) -> list[Tensor]:
    given = given or {}
    if not all(name in given for name in names):
        needed = " and ".join(f"{name} ({_ADDED[name]})" for name in names)
        raise InputError(
            f"added_cond_kwargs has {', '.join(given) or 'nothing'}, but this model needs {needed}. Pass "
            "them, as its family's pipelines do.",
            parameter="added_cond_kwargs",
        )
    return [given[name] for name in names]
