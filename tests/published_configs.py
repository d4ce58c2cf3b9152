"""The config.json files of popular checkpoints, for tests that need no weights.

They are complete where a file has more than the defaults, because unusual keys are those that readers fail
on.
"""

from __future__ import annotations

from typing import Any

_FOUR_LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}

_SD_1: dict[str, Any] = _FOUR_LEVELS | {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
}

_SD_2 = _SD_1 | {
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}

# Keys that newer versions of the reference write, used or not.
_NEWER_KEYS = {
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
}

_SDXL = (
    _SD_1
    | _NEWER_KEYS
    | {
        "_diffusers_version": "0.19.0.dev0",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }
)

# With the settings of averaged weights that its training left in it.
_SDXL_INPAINTING = _SDXL | {
    "decay": 0.9999,
    "in_channels": 9,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 37000,
    "power": 0.6666666666666666,
    "update_after_step": 0,
    "use_ema_warmup": False,
}

_SDXL_REFINER = _SDXL | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

_KANDINSKY_DECODER = _NEWER_KEYS | {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.18.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "image",
    "attention_head_dim": 64,
    "block_out_channels": [384, 768, 1152, 1536],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "downsample_padding": 1,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 3,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 8,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}

UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": _SD_1,
    "SD 1.5 inpainting": _SD_1 | {"in_channels": 9},
    "SD 2.1": _SD_2,
    "SD 2 inpainting": _SD_2 | {"in_channels": 9, "sample_size": 64, "upcast_attention": False},
    "LCM": _SD_1 | _NEWER_KEYS | {"time_cond_proj_dim": 256},
    "SDXL base": _SDXL,
    "SDXL inpainting": _SDXL_INPAINTING,
    "SDXL refiner": _SDXL_REFINER,
    "Kandinsky 2.2 decoder": _KANDINSKY_DECODER,
    "Kandinsky 2.2 decoder for inpainting": _KANDINSKY_DECODER | {"in_channels": 9},
}

_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "SD": _VAE,
    "SDXL": _VAE
    | {
        "force_upcast": True,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
}

MOVQS: dict[str, dict[str, Any]] = {
    "Kandinsky 2.2": {
        "_class_name": "VQModel",
        "_diffusers_version": "0.18.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "norm_type": "spatial",
        "num_vq_embeddings": 16384,
        "out_channels": 3,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        "vq_embed_dim": 4,
    }
}

PRIORS: dict[str, dict[str, Any]] = {
    "Kandinsky 2.2": {
        "_class_name": "PriorTransformer",
        "_diffusers_version": "0.17.0.dev0",
        "added_emb_type": "prd",
        "additional_embeddings": 4,
        "attention_head_dim": 64,
        "clip_embed_dim": None,
        "dropout": 0.0,
        "embedding_dim": 1280,
        "embedding_proj_dim": None,
        "embedding_proj_norm_type": None,
        "encoder_hid_proj_type": "linear",
        "norm_in_type": None,
        "num_attention_heads": 32,
        "num_embeddings": 77,
        "num_layers": 20,
        "time_embed_act_fn": "silu",
        "time_embed_dim": None,
    }
}

# For the decoder's DDPMScheduler and the prior's UnCLIPScheduler.
KANDINSKY_SCHEDULERS: dict[str, dict[str, Any]] = {
    "decoder": {
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 2.0,
        "thresholding": True,
        "variance_type": "learned_range",
    },
    "prior": {
        "clip_sample": True,
        "clip_sample_range": 5.0,
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    },
}


def _controlnet(**settings: Any) -> dict[str, Any]:
    left_out = {"sample_size", "out_channels", "up_block_types", "center_input_sample"}
    shared = {key: value for key, value in _SD_1.items() if key not in left_out}
    return (
        shared
        | {
            "_class_name": "ControlNetModel",
            "class_embed_type": None,
            "conditioning_embedding_out_channels": [16, 32, 96, 256],
            "controlnet_conditioning_channel_order": "rgb",
            "num_class_embeds": None,
            "only_cross_attention": False,
            "projection_class_embeddings_input_dim": None,
            "resnet_time_scale_shift": "default",
            "upcast_attention": False,
            "use_linear_projection": False,
        }
        | settings
    )


_XL_CONTROLNET: dict[str, Any] = {
    "_diffusers_version": "0.20.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "conditioning_channels": 3,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "global_pool_conditions": False,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "upcast_attention": None,
    "use_linear_projection": True,
}

CONTROLNETS: dict[str, dict[str, Any]] = {
    "control_v11p_sd15_inpaint": _controlnet(_diffusers_version="0.16.0.dev0"),
    "control_v11e_sd15_shuffle": _controlnet(global_pool_conditions=True),
    "controlnet-sd21": _controlnet(
        attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
    ),
    "controlnet-canny-sdxl-1.0": _controlnet(**_XL_CONTROLNET),
    "controlnet-canny-sdxl-1.0-small": _controlnet(
        **_XL_CONTROLNET | {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"},
    ),
}
