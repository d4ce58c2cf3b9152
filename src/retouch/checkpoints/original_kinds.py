"""The kinds of checkpoints that were published as one file in the original layout: their parts and settings.

A file of this layout holds tensors alone, so the settings that a hub repository has in its config.json files
are here, as published there. Settings that are the defaults of our configs are left out. Nothing is read
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.errors import InputError

Settings = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint: its family, its task, and the class and settings of each of its parts."""

    title: str
    family: str  # the family's name in the registry
    task: str  # text2image, image2image or inpaint: the task that it was trained for
    parts: Mapping[str, tuple[str, Settings]]  # as a hub repository has them
    switches: Mapping[str, Any] = field(default_factory=dict)
    # The name of another kind with the same tensors, which predicts epsilon where this one predicts v.
    twin: str | None = None
    # The folder that holds the tokenizers, where the settings came from a folder rather than from here.
    folder: Path | None = None

    def settings_of(self, part: str) -> Settings:
        """Return the config of one part. A ControlNet copies the UNet's encoder and shares its settings."""
        if part == "controlnet" and part not in self.parts:
            _, settings = self.parts["unet"]
            return {key: value for key, value in settings.items() if key not in _UNET_ONLY}
        if part not in self.parts:
            raise InputError(
                f"{self.title} has no {part}. Its parts are {', '.join(self.parts)}. Pass config= with a "
                f"folder that holds the settings.",
                parameter="config",
            )
        return self.parts[part][1]


_UNET_ONLY = ("sample_size", "up_block_types")


def _vae(sample_size: int, **settings: Any) -> tuple[str, Settings]:
    return "AutoencoderKL", {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": sample_size,
        **settings,
    }


def _text_encoder(class_name: str, width: int, layers: int, **settings: Any) -> tuple[str, Settings]:
    return class_name, {
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # not the tokenizer's, in all published configs; CLIP's pooling expects it
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "num_attention_heads": width // 64,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "vocab_size": 49408,
        **settings,
    }


_CLIP_L = _text_encoder("CLIPTextModel", 768, 12, hidden_act="quick_gelu", projection_dim=768)
# SD 2 was trained on the output of the last layer but one, so the last is left out.
_VIT_H = _text_encoder("CLIPTextModel", 1024, 23, hidden_act="gelu", projection_dim=512)
_BIG_G = _text_encoder("CLIPTextModelWithProjection", 1280, 32, hidden_act="gelu", projection_dim=1280)

_CLIP_TOKENIZER = ("CLIPTokenizer", {"pad_token": "<|endoftext|>"})
_OPEN_CLIP_TOKENIZER = ("CLIPTokenizer", {"pad_token": "!"})  # its padding is token 0

_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_PNDM = ("PNDMScheduler", _SCHEDULE)
_DDIM = ("DDIMScheduler", _SCHEDULE)
_DDIM_V = ("DDIMScheduler", {**_SCHEDULE, "prediction_type": "v_prediction"})
_EULER = (
    "EulerDiscreteScheduler",
    {
        **_SCHEDULE,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
)


def _unet(sample_size: int, in_channels: int, **settings: Any) -> tuple[str, Settings]:
    return "UNet2DConditionModel", {"sample_size": sample_size, "in_channels": in_channels, **settings}


_SD_1_UNET = {"cross_attention_dim": 768}
_SD_2_UNET = {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_XL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}
_REFINER_UNET = {
    **_XL_UNET,
    "attention_head_dim": (6, 12, 24, 24),
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


def _sd_1(in_channels: int, scheduler: tuple[str, Settings]) -> dict[str, tuple[str, Settings]]:
    return {
        "vae": _vae(512),
        "text_encoder": _CLIP_L,
        "tokenizer": _CLIP_TOKENIZER,
        "unet": _unet(64, in_channels, **_SD_1_UNET),
        "scheduler": scheduler,
    }


def _sd_2(
    side: int, in_channels: int, scheduler: tuple[str, Settings], **unet: Any
) -> dict[str, tuple[str, Settings]]:
    return {
        "vae": _vae(side),
        "text_encoder": _VIT_H,
        "tokenizer": _OPEN_CLIP_TOKENIZER,
        "unet": _unet(side // 8, in_channels, **_SD_2_UNET, **unet),
        "scheduler": scheduler,
    }


def _xl(in_channels: int) -> dict[str, tuple[str, Settings]]:
    return {
        "vae": _vae(1024, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _BIG_G,
        "tokenizer": _CLIP_TOKENIZER,
        "tokenizer_2": _OPEN_CLIP_TOKENIZER,
        "unet": _unet(128, in_channels, **_XL_UNET),
        "scheduler": _EULER,
    }


_REFINER = {
    **{part: entry for part, entry in _xl(4).items() if part not in ("text_encoder", "tokenizer")},
    "unet": _unet(128, 4, **_REFINER_UNET),
}

_SD, _SDXL = "stable_diffusion", "stable_diffusion_xl"

# By the names that `config=` takes.
KINDS: dict[str, Kind] = {
    "sd15": Kind("Stable Diffusion 1.x", _SD, "text2image", _sd_1(4, _PNDM)),
    "sd15-inpainting": Kind("Stable Diffusion 1.x inpainting", _SD, "inpaint", _sd_1(9, _DDIM)),
    "sd2": Kind(
        "Stable Diffusion 2.x (768, v-prediction)",
        _SD,
        "text2image",
        _sd_2(768, 4, _DDIM_V, upcast_attention=True),
        twin="sd2-base",
    ),
    "sd2-base": Kind("Stable Diffusion 2.x (512)", _SD, "text2image", _sd_2(512, 4, _PNDM)),
    "sd2-inpainting": Kind("Stable Diffusion 2.x inpainting", _SD, "inpaint", _sd_2(512, 9, _PNDM)),
    "sdxl": Kind("Stable Diffusion XL", _SDXL, "text2image", _xl(4)),
    "sdxl-inpainting": Kind("Stable Diffusion XL inpainting", _SDXL, "inpaint", _xl(9)),
    "sdxl-refiner": Kind(
        "Stable Diffusion XL refiner",
        _SDXL,
        "image2image",
        _REFINER,
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
}
