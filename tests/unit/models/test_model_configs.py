"""What a model's config refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

from retouch.errors import ConfigError
from retouch.models.autoencoder import AutoencoderKL, AutoencoderKLConfig
from retouch.models.unet import UNet2DConditionConfig, UNet2DConditionModel

UNET_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "down block": (
        {"down_block_types": ["KDownBlock2D"] * 4},
        r"down_block_types = 'KDownBlock2D' .* Supported: DownBlock2D, .*SimpleCrossAttnDownBlock2D\.",
    ),
    "up block": (
        {"up_block_types": ["UpBlock2D"] * 3 + ["AttnUpBlock2D"]},
        r"up_block_types = 'AttnUpBlock2D' .* Supported: UpBlock2D, .*SimpleCrossAttnUpBlock2D\.",
    ),
    "middle": (
        {"mid_block_type": "UNetMidBlock3D"},
        r"mid_block_type = 'UNetMidBlock3D' .* Supported: .*UNetMidBlock2DSimpleCrossAttn, None\.",
    ),
    "addition": (
        {"addition_embed_type": "image_hint"},
        r"addition_embed_type = 'image_hint' .* Supported: text_time, image, None\.",
    ),
    "images without their width": (
        {"addition_embed_type": "image"},
        r"encoder_hid_dim = None .*addition_embed_type = 'image'.*must be one positive number",
    ),
    "text projection": (
        {"encoder_hid_dim_type": "text_proj"},
        r"encoder_hid_dim_type = 'text_proj' .* Supported: image_proj, None\.",
    ),
    "addition without sizes": (
        {"addition_embed_type": "text_time"},
        r"addition_embed_type = 'text_time' .*addition_time_embed_dim = None .*must be positive",
    ),
    "activation": ({"act_fn": "gelu"}, r"act_fn = 'gelu' .* Supported: 'silu'"),
    "kernel": ({"conv_in_kernel": 5}, r"conv_in_kernel = 5 .* Supported: 3"),
    "class embedding": (
        {"class_embed_type": "projection"},
        r"class_embed_type = 'projection' is not supported",
    ),
    "true heads": ({"num_attention_heads": 8}, r"num_attention_heads = 8 is not supported"),
    "norm of the time": (
        {"resnet_time_scale_shift": "ada_group"},
        r"resnet_time_scale_shift = 'ada_group' .* Supported: default, scale_shift\.",
    ),
    "too few heads": (
        {"attention_head_dim": [5, 10, 20]},
        r"attention_head_dim = \(5, 10, 20\) .* one value for each of block_out_channels = \(320, 640, 1",
    ),
    "layers within layers": (
        {"transformer_layers_per_block": [[1, 1], [2, 2], [4, 4], [4, 4]]},
        r"transformer_layers_per_block = \(\(1, 1\)",
    ),
    "too few blocks": (
        {"up_block_types": ["UpBlock2D"]},
        r"up_block_types = \('UpBlock2D',\) .* one value for each",
    ),
    "unheard of": ({"colour_of_noise": "pink"}, r"colour_of_noise = 'pink' is not supported"),
}


@pytest.mark.parametrize("settings, message", UNET_REFUSALS.values(), ids=UNET_REFUSALS.keys())
def test_the_unet_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        UNet2DConditionModel(**settings)
    assert f"{caught.value.parameter} = " in str(caught.value)
    assert str(caught.value).count(". ") >= 2  # what was given, what is accepted, what to do
    with pytest.raises(ConfigError, match=r"^unet/config\.json: "):
        UNet2DConditionConfig.from_dict(settings, source="unet/config.json")


AUTOENCODER_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "down block": (
        {"down_block_types": ["AttnDownEncoderBlock2D"]},
        r"down_block_types = \('AttnDownEncoderBlock2D',\) .* Supported: DownEncoderBlock2D, one for each",
    ),
    "one block for two levels": (
        {"block_out_channels": [64, 64], "down_block_types": ["DownEncoderBlock2D"] * 2},
        r"up_block_types = \('UpDecoderBlock2D',\) .* Supported: UpDecoderBlock2D, one for each",
    ),
    "activation": ({"act_fn": "mish"}, r"act_fn = 'mish' .* Supported: 'silu'"),
    "norm": ({"norm_type": "spatial"}, r"norm_type = 'spatial' is not supported"),
}


@pytest.mark.parametrize("settings, message", AUTOENCODER_REFUSALS.values(), ids=AUTOENCODER_REFUSALS.keys())
def test_the_autoencoder_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        AutoencoderKL(**settings)
    assert f"{caught.value.parameter} = " in str(caught.value)
    with pytest.raises(ConfigError, match=r"^vae/config\.json: "):
        AutoencoderKLConfig.from_dict(settings, source="vae/config.json")
