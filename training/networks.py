"""The networks of the built-in checkpoint: small configurations of the ordinary classes."""

from __future__ import annotations

from retouch.models.autoencoder import AutoencoderKL
from retouch.models.tiny_autoencoder import AutoencoderTiny
from retouch.models.unet import UNet2DConditionModel

LATENT_CHANNELS = 4
FACTOR = 8


def make_autoencoder(size: int = 128, widths: tuple[int, ...] = (24, 48, 96, 128)) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=size,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the network itself whitens the latents (see train_vae.py)
        force_upcast=False,
    )


def make_unet(
    size: int = 128, channels: int = LATENT_CHANNELS, widths: tuple[int, ...] = (96, 160, 224)
) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size // FACTOR,
        in_channels=channels,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=2,  # the number of heads, despite its name; two are faster than four
        norm_num_groups=16,
        use_linear_projection=True,
    )


def make_preview_decoder(width: int = 32) -> AutoencoderTiny:
    """Make an AutoencoderTiny that only decodes; its encoder is a stub."""
    network = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        decoder_block_out_channels=(width,) * 4,
        num_decoder_blocks=(
            4,
            3,
            1,
            0,
        ),  # most blocks where maps are small, because layers on large maps are slow
        encoder_block_out_channels=(4,),
        num_encoder_blocks=(0,),
    )
    for parameter in network.encoder.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)
    return network
