"""Each layer and block of the networks compared with the reference's, with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal, share_weights
from diffusers.models import attention as their_attention, embeddings, resnet
from diffusers.models.attention_processor import Attention as TheirAttention, AttnAddedKVProcessor2_0
from diffusers.models.downsampling import Downsample2D as TheirDownsample
from diffusers.models.transformers.transformer_2d import Transformer2DModel as TheirTransformer
from diffusers.models.unets import unet_2d_blocks as their_blocks
from diffusers.models.upsampling import Upsample2D as TheirUpsample
from tiny_checkpoints import randomised
from torch import Tensor, nn

from retouch.models import attention, autoencoder, layers, unet_blocks
from retouch.models.unet_blocks import Level

pytestmark = pytest.mark.usefixtures("no_gradients")

TEXT_WIDTH, TIME_WIDTH = 12, 20

LEVEL = Level(
    above=8,
    channels=16,
    below=24,
    is_finest=False,
    is_coarsest=False,
    temb_channels=TIME_WIDTH,
    layers=2,
    groups=4,
    eps=1e-5,
    downsample_padding=1,
    attention_head_dim=4,
    transformer_layers=2,
    cross_attention_dim=TEXT_WIDTH,
    use_linear_projection=False,
    only_cross_attention=False,
    scale_shift=False,
)
# The small scale shows a wrong epsilon in a norm.
SCALES = (1, 1e-3)

LEVELS = {
    "SD 1": LEVEL,
    "SD 2": replace(LEVEL, use_linear_projection=True, attention_head_dim=2, layers=1),
    "at the edge": replace(LEVEL, is_finest=True, is_coarsest=True, below=16),
    "only cross-attention": replace(LEVEL, only_cross_attention=True),
    "padding on one side": replace(LEVEL, downsample_padding=0),
    "scale and shift": replace(LEVEL, scale_shift=True),
}
# The settings that the simple blocks are for.
SIMPLE_LEVELS = {
    "Kandinsky": replace(LEVEL, scale_shift=True),
    "at the edge": replace(LEVEL, scale_shift=True, is_finest=True, is_coarsest=True, below=16),
    "time added": replace(LEVEL, attention_head_dim=8, layers=1),
}


def pair(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    share_weights(ours.eval(), randomised(theirs))
    return ours, theirs


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_sinusoids(flip: bool, shift: int) -> None:
    timesteps = torch.tensor([0.0, 1.0, 17.5, 500.0, 999.0])
    ours = layers.sinusoidal_embedding(timesteps, 32, flip_sin_to_cos=flip, freq_shift=shift)
    theirs = embeddings.get_timestep_embedding(
        timesteps, 32, flip_sin_to_cos=flip, downscale_freq_shift=shift
    )
    assert_close(ours, theirs)


def test_sinusoids_stay_float32_for_half_precision_timesteps() -> None:
    timesteps = torch.tensor([999, 998])
    exact = layers.sinusoidal_embedding(timesteps, 32)
    assert exact.dtype == torch.float32
    assert_equal(layers.sinusoidal_embedding(timesteps.half(), 32), exact)


@pytest.mark.parametrize("cond_proj_dim", [None, 6])
def test_timestep_embedding(cond_proj_dim: int | None) -> None:
    ours, theirs = pair(
        layers.TimestepEmbedding(8, TIME_WIDTH, cond_proj_dim),
        embeddings.TimestepEmbedding(8, TIME_WIDTH, cond_proj_dim=cond_proj_dim),
    )
    condition = torch.randn(3, cond_proj_dim) if cond_proj_dim else None
    x = torch.randn(3, 8)
    assert_close(ours(x, condition), lambda: theirs(x, condition))


@pytest.mark.parametrize("out_channels", [8, 16])
@pytest.mark.parametrize("temb_channels", [TIME_WIDTH, None])
def test_resnet_block(out_channels: int, temb_channels: int | None) -> None:
    ours, theirs = pair(
        layers.ResnetBlock2D(8, out_channels, temb_channels, groups=4, eps=1e-5),
        resnet.ResnetBlock2D(
            in_channels=8, out_channels=out_channels, temb_channels=temb_channels, groups=4, eps=1e-5
        ),
    )
    temb = torch.randn(2, temb_channels) if temb_channels else None
    x = torch.randn(2, 8, 7, 5)
    assert_close(ours(x, temb), lambda: theirs(x, temb))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_downsample(padding: int, size: tuple[int, int]) -> None:
    ours, theirs = pair(
        layers.Downsample2D(8, padding), TheirDownsample(8, use_conv=True, padding=padding, name="op")
    )
    x = torch.randn(2, 8, *size)
    assert_close(ours(x), lambda: theirs(x))


@pytest.mark.parametrize("size", [None, (14, 10), (13, 9)])
def test_upsample(size: tuple[int, int] | None) -> None:
    ours, theirs = pair(layers.Upsample2D(8), TheirUpsample(8, use_conv=True))
    x = torch.randn(2, 8, 7, 5)
    assert_close(ours(x, size=size), lambda: theirs(x, size))


@pytest.mark.parametrize("text_width", [None, TEXT_WIDTH])
@pytest.mark.parametrize("bias", [True, False])
def test_attention(text_width: int | None, bias: bool) -> None:
    ours, theirs = pair(
        attention.Attention(16, text_width, heads=2, dim_head=8, bias=bias),
        TheirAttention(16, text_width, heads=2, dim_head=8, bias=bias),
    )
    tokens = 3 * torch.randn(2, 11, 16)
    text = 3 * torch.randn(2, 5, text_width) if text_width else None
    assert_close(ours(tokens, text), lambda: theirs(tokens, text))


@pytest.mark.parametrize("scale", SCALES)
def test_spatial_attention(scale: float) -> None:
    theirs = TheirAttention(
        16, heads=1, dim_head=16, bias=True, norm_num_groups=4, eps=1e-6, residual_connection=True
    )
    ours, theirs = pair(attention.SpatialAttention(16, groups=4, eps=1e-6), theirs)
    x = scale * torch.randn(2, 16, 5, 3)
    assert_close(ours(x), lambda: theirs(x))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("only_cross_attention", [True, False])
def test_transformer_block(only_cross_attention: bool, scale: float) -> None:
    ours, theirs = pair(
        attention.BasicTransformerBlock(
            16, heads=4, cross_attention_dim=TEXT_WIDTH, only_cross_attention=only_cross_attention
        ),
        their_attention.BasicTransformerBlock(
            16, 4, 4, cross_attention_dim=TEXT_WIDTH, only_cross_attention=only_cross_attention
        ),
    )
    tokens, text = scale * torch.randn(2, 15, 16), torch.randn(2, 7, TEXT_WIDTH)
    assert_close(ours(tokens, text), lambda: theirs(tokens, encoder_hidden_states=text))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", SCALES)
def test_transformer(linear: bool, layout: torch.memory_format, scale: float) -> None:
    ours, theirs = pair(
        attention.Transformer2DModel(
            16, heads=4, num_layers=2, cross_attention_dim=TEXT_WIDTH, groups=4, use_linear_projection=linear
        ),
        TheirTransformer(
            4,
            4,
            16,
            num_layers=2,
            cross_attention_dim=TEXT_WIDTH,
            norm_num_groups=4,
            use_linear_projection=linear,
        ),
    )
    x = scale * torch.randn(2, 16, 5, 3).contiguous(memory_format=layout)
    text = torch.randn(2, 7, TEXT_WIDTH)
    result = ours(x, text)
    assert_close(result, lambda: theirs(x, text, return_dict=False)[0])
    assert result.is_contiguous(memory_format=layout)


def arguments(level: Level) -> dict[str, Any]:
    """Return a level's settings as arguments of the reference's blocks."""
    return {
        "in_channels": level.above,
        "out_channels": level.channels,
        "temb_channels": level.temb_channels,
        "resnet_groups": level.groups,
        "resnet_eps": level.eps,
        "resnet_time_scale_shift": "scale_shift" if level.scale_shift else "default",
    }


def attention_arguments(level: Level) -> dict[str, Any]:
    return {
        "transformer_layers_per_block": level.transformer_layers,
        "num_attention_heads": level.attention_head_dim,
        "cross_attention_dim": level.cross_attention_dim,
        "use_linear_projection": level.use_linear_projection,
    }


def inputs(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, channels, 7, 5), torch.randn(2, TIME_WIDTH), torch.randn(2, 9, TEXT_WIDTH)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("name", ["DownBlock2D", "CrossAttnDownBlock2D"])
def test_down_block(name: str, level: Level) -> None:
    settings = arguments(level) | {
        "num_layers": level.layers,
        "add_downsample": not level.is_coarsest,
        "downsample_padding": level.downsample_padding,
    }
    attends = name.startswith("CrossAttn")
    if attends:
        settings |= attention_arguments(level) | {"only_cross_attention": level.only_cross_attention}
    ours, theirs = pair(unet_blocks.DOWN_BLOCKS[name](level), getattr(their_blocks, name)(**settings))
    x, temb, text = inputs(level.above)
    result, kept = ours(x, temb, text)
    assert len(kept) == level.layers + (not level.is_coarsest)
    extra = {"encoder_hidden_states": text} if attends else {}
    assert_close([result, kept], lambda: theirs(x, temb, **extra))


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("name", ["UpBlock2D", "CrossAttnUpBlock2D"])
def test_up_block(name: str, level: Level) -> None:
    settings = arguments(level) | {
        "num_layers": level.layers + 1,
        "prev_output_channel": level.below,
        "add_upsample": not level.is_finest,
    }
    attends = name.startswith("CrossAttn")
    if attends:
        settings |= attention_arguments(level) | {"only_cross_attention": level.only_cross_attention}
    ours, theirs = pair(unet_blocks.UP_BLOCKS[name](level), getattr(their_blocks, name)(**settings))
    x, temb, text = inputs(level.below)
    skips = [torch.randn(2, channels, 7, 5) for channels in (level.above, *[level.channels] * level.layers)]
    finer = torch.randn(2, level.above, 13, 10)
    kept = [finer, *skips]
    extra = {"encoder_hidden_states": text} if attends else {}
    result = ours(x, temb, text, kept)
    assert_close(result, lambda: theirs(x, tuple(skips), temb, upsample_size=(13, 10), **extra))
    assert len(kept) == 1 and kept[0] is finer  # the states for finer levels are left


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
def test_mid_block(level: Level) -> None:
    settings = arguments(level) | attention_arguments(level) | {"in_channels": level.channels}
    ours, theirs = pair(
        unet_blocks.MID_BLOCKS["UNetMidBlock2DCrossAttn"](level),
        their_blocks.UNetMidBlock2DCrossAttn(**settings),
    )
    x, temb, text = inputs(level.channels)
    assert_close(ours(x, temb, text), lambda: theirs(x, temb, text))


def simple_arguments(level: Level, name: str) -> dict[str, Any]:
    if "SimpleCrossAttn" not in name:
        return {}
    return {
        "attention_head_dim": level.attention_head_dim,
        "cross_attention_dim": level.cross_attention_dim,
    }


@pytest.mark.parametrize("level", SIMPLE_LEVELS.values(), ids=SIMPLE_LEVELS.keys())
@pytest.mark.parametrize("name", ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"])
def test_simple_down_block(name: str, level: Level) -> None:
    settings = arguments(level) | {"num_layers": level.layers, "add_downsample": not level.is_coarsest}
    settings |= simple_arguments(level, name)
    ours, theirs = pair(unet_blocks.DOWN_BLOCKS[name](level), getattr(their_blocks, name)(**settings))
    x, temb, context = torch.randn(2, level.above, 8, 6), *inputs(level.above)[1:]
    result, kept = ours(x, temb, context)
    assert len(kept) == level.layers + (not level.is_coarsest)
    extra = {"encoder_hidden_states": context} if "Attn" in name else {}
    assert_close([result, kept], lambda: theirs(x, temb, **extra))


@pytest.mark.parametrize("level", SIMPLE_LEVELS.values(), ids=SIMPLE_LEVELS.keys())
@pytest.mark.parametrize("name", ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"])
def test_simple_up_block(name: str, level: Level) -> None:
    settings = arguments(level) | {
        "num_layers": level.layers + 1,
        "prev_output_channel": level.below,
        "add_upsample": not level.is_finest,
    }
    settings |= simple_arguments(level, name)
    ours, theirs = pair(unet_blocks.UP_BLOCKS[name](level), getattr(their_blocks, name)(**settings))
    x, temb, context = inputs(level.below)
    skips = [torch.randn(2, channels, 7, 5) for channels in (level.above, *[level.channels] * level.layers)]
    extra = {"encoder_hidden_states": context} if "Attn" in name else {}
    result = ours(x, temb, context, [torch.randn(2, level.above, 14, 10), *skips])
    assert_close(result, lambda: theirs(x, tuple(skips), temb, **extra))


def test_simple_mid_block() -> None:
    name, level = "UNetMidBlock2DSimpleCrossAttn", SIMPLE_LEVELS["Kandinsky"]
    settings = arguments(level) | simple_arguments(level, name) | {"in_channels": level.channels}
    settings.pop("out_channels")
    ours, theirs = pair(unet_blocks.MID_BLOCKS[name](level), getattr(their_blocks, name)(**settings))
    x, temb, context = inputs(level.channels)
    assert_close(ours(x, temb, context), lambda: theirs(x, temb, context))


@pytest.mark.parametrize("scale", SCALES)
def test_attention_with_an_added_context(scale: float) -> None:
    theirs = TheirAttention(
        16,
        16,
        heads=2,
        dim_head=8,
        bias=True,
        added_kv_proj_dim=TEXT_WIDTH,
        norm_num_groups=4,
        processor=AttnAddedKVProcessor2_0(),
    )
    ours = attention.AddedContextAttention(16, TEXT_WIDTH, heads=2, dim_head=8, groups=4)
    ours, theirs = pair(ours, theirs)
    x, context = scale * torch.randn(2, 16, 5, 3), 3 * torch.randn(2, 9, TEXT_WIDTH)
    assert_close(ours(x, context), lambda: theirs(x, encoder_hidden_states=context))


def test_odd_sizes_halve_and_come_back() -> None:
    """The reference drops the last row and column of an odd size, and then fails to restore the size."""
    down = layers.DownResnetBlock2D(8, 8, TIME_WIDTH, groups=4, eps=1e-5)
    up = layers.UpResnetBlock2D(8, 8, TIME_WIDTH, groups=4, eps=1e-5)
    x, temb = torch.randn(1, 8, 7, 5), torch.randn(1, TIME_WIDTH)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    assert_close(down.resized(x, None), lambda: down.resized(padded, None))
    assert down(x, temb).shape == (1, 8, 4, 3)
    assert up(down(x, temb), temb, (7, 5)).shape == x.shape
    small = torch.randn(1, 8, 4, 3)
    assert_equal(up.resized(small, (7, 5)), up.resized(small, None)[..., :7, :5])


def test_image_embeddings() -> None:
    embeds = torch.randn(2, 10)
    ours, theirs = pair(layers.ImageProjection(10, 6), embeddings.ImageProjection(10, 6))
    assert_close(ours(embeds), lambda: theirs(embeds))
    ours, theirs = pair(
        layers.ImageTimeEmbedding(10, TIME_WIDTH), embeddings.ImageTimeEmbedding(10, TIME_WIDTH)
    )
    assert_close(ours(embeds), lambda: theirs(embeds))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("add_attention", [True, False])
def test_autoencoder_mid_block(add_attention: bool, scale: float) -> None:
    theirs = their_blocks.UNetMidBlock2D(
        16, None, resnet_groups=4, attention_head_dim=16, add_attention=add_attention
    )
    ours, theirs = pair(autoencoder.UNetMidBlock2D(16, groups=4, add_attention=add_attention), theirs)
    x = scale * torch.randn(2, 16, 6, 4)
    assert_close(ours(x), lambda: theirs(x))
