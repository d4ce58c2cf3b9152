"""ControlNet ("Adding Conditional Control to Text-to-Image Diffusion Models"): a picture steers a UNet.

A copy of the UNet's encoder also gets the control picture. Its outputs go through convolutions that start at
zero, and are added to the UNet's skip connections. The caller decides in which steps and how strongly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.checkpoints.pretrained import Pretrained
from retouch.errors import CheckpointError, ConfigError, InputError
from retouch.models.unet_encoder import UNetEncoder, UNetEncoderConfig


@dataclass(frozen=True)
class ControlNetConfig(UNetEncoderConfig):
    """The settings of the UNet's encoder, and those for the control picture."""

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    # Average the residuals over the picture: they tell its content without positions ("shuffle").
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_known("controlnet_conditioning_channel_order", ("rgb", "bgr"))
        self.require_known("encoder_hid_dim_type", (None,))  # Kandinsky's control is of another kind
        self.require_known("addition_embed_type", ("text_time", None))


class ControlNetOutput(NamedTuple):
    """The residuals for each skip connection of the UNet, and for its middle."""

    down_block_res_samples: list[Tensor]
    mid_block_res_sample: Tensor


class ControlNetConditioningEmbedding(nn.Module):
    """Convolutions from a picture to features at the latents' size; each level has half the size."""

    def __init__(self, in_channels: int, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for finer, coarser in pairwise(channels):
            self.blocks.append(nn.Conv2d(finer, finer, 3, padding=1))
            self.blocks.append(nn.Conv2d(finer, coarser, 3, padding=1, stride=2))
        self.conv_out = _zero_convolution(channels[-1], out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNetModel(Pretrained, UNetEncoder):
    """The network: from a control picture to residuals for the UNet."""

    config_class = ControlNetConfig
    config: ControlNetConfig

    def __init__(self, **settings: Any) -> None:
        config = ControlNetConfig.from_dict(settings)
        super().__init__(config)
        levels = config.levels()
        kept = [levels[0].channels]
        for level in levels:
            kept += [level.channels] * (level.layers + (not level.is_coarsest))
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, levels[0].channels
        )
        self.controlnet_down_blocks = nn.ModuleList(_zero_convolution(count, count, 1) for count in kept)
        self.controlnet_mid_block = _zero_convolution(levels[-1].channels, levels[-1].channels, 1)

    @classmethod
    def from_unet(
        cls,
        unet: Any,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> ControlNetModel:
        """Return a ControlNet to train: a copy of the UNet's encoder, with no influence yet."""
        shared = {field.name for field in fields(UNetEncoderConfig)}
        net = cls(
            **{key: value for key, value in unet.config.items() if key in shared},
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=tuple(conditioning_embedding_out_channels),
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            own = net.state_dict()
            copied = {key: value for key, value in unet.state_dict().items() if key in own}
            left = [key for key in own if key not in copied and not key.startswith("controlnet_")]
            if left:
                raise ConfigError(
                    f"The {type(unet).__name__} lacks {len(left)} tensors of a ControlNet's encoder, first "
                    f"{left[0]}. A UNet2DConditionModel of Stable Diffusion or SDXL is expected.",
                    parameter="unet",
                )
            net.load_state_dict(copied, strict=False)
        return net

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput:
        """Return the residuals for (batch, 4, height, width) latents and pictures of eight times that size.

        In `guess_mode` fine levels count less: a tenth of `conditioning_scale` at the finest, all of it in
        the middle.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        temb = self.embed_time(sample, timestep, None, added_cond_kwargs)
        x = self.conv_in(sample) + self.controlnet_cond_embedding(controlnet_cond)
        x, kept = self.encode(x, temb, encoder_hidden_states)
        residuals = [convolve(part) for convolve, part in zip(self.controlnet_down_blocks, kept, strict=True)]
        residuals.append(self.controlnet_mid_block(x))
        if guess_mode and not self.config.global_pool_conditions:
            scales = torch.logspace(-1, 0, len(residuals), device=x.device) * conditioning_scale
            residuals = [part * scale for part, scale in zip(residuals, scales, strict=True)]
        else:
            residuals = [part * conditioning_scale for part in residuals]
        if self.config.global_pool_conditions:
            residuals = [part.mean(dim=(2, 3), keepdim=True) for part in residuals]
        return ControlNetOutput(residuals[:-1], residuals[-1])


class MultiControlNetModel(nn.Module):
    """Several ControlNets as one part of a pipeline; their residuals are summed."""

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        if not controlnets:
            raise InputError(
                "controlnet is an empty list. Give at least one ControlNetModel.", parameter="controlnet"
            )
        self.nets = nn.ModuleList(controlnets)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        **options: Any,
    ) -> ControlNetOutput:
        """Return the summed residuals for one picture and one scale for each net.

        A net whose scale is 0 is not run, unless all scales are 0.
        """
        parts = list(zip(self.nets, controlnet_cond, conditioning_scale, strict=True))
        outputs = [
            net(sample, timestep, encoder_hidden_states, picture, scale, **options)
            for net, picture, scale in [part for part in parts if part[2]] or parts[:1]
        ]
        down, mid = outputs[0]
        for more_down, more_mid in outputs[1:]:
            down = [total + part for total, part in zip(down, more_down, strict=True)]
            mid = mid + more_mid
        return ControlNetOutput(down, mid)

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write the first net into `folder`, and the others beside it into `folder`_1, `folder`_2, ..."""
        for net, place in zip(self.nets, _numbered(folder, len(self.nets)), strict=True):
            net.save_pretrained(place, **options)  # type: ignore[operator]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, subfolder: str | None = None, **options: Any
    ) -> MultiControlNetModel:
        """Load all nets that `save_pretrained` wrote; `folder` is on this machine."""
        first = Path(folder) / (subfolder or "")
        count = 0
        while _numbered(first, count + 1)[-1].is_dir():
            count += 1
        if not count:
            raise CheckpointError(
                f"{first} is not there. A folder with a ControlNet is expected, and others beside it as "
                f"{first.name}_1, {first.name}_2, .... Check the path.",
                parameter="folder",
            )
        return cls([ControlNetModel.from_pretrained(place, **options) for place in _numbered(first, count)])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first net's weights."""
        return self.nets[0].dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """The device of the first net's weights."""
        return self.nets[0].device  # type: ignore[return-value]


def _zero_convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Return a convolution with weights of zero, without influence until it is trained."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _numbered(folder: str | os.PathLike[str], count: int) -> list[Path]:
    path = Path(folder)
    return [path, *(path.with_name(f"{path.name}_{number}") for number in range(1, count))]
