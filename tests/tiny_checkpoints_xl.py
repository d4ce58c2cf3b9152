"""Complete Stable Diffusion XL checkpoints, made as tiny_checkpoints.py makes those of SD 1.x and 2.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tiny_checkpoints import (
    DEFAULT_SIDE,
    checkpoint_fixture,
    halved,
    randomised,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
    vocabulary,
    write_tokenizer,
)

# Settings of the scheduler files in the hub's SDXL repositories.
_EULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

# Wide enough for different widths of the pooled text with six size ids, or with the refiner's five.
_POOLED, _SIZE_ID = 24, 8


def stable_diffusion_xl(
    folder: str | Path,
    *,
    kind: Literal["base", "inpaint", "refiner"] = "base",
    force_upcast: bool = True,
    variant: str | None = None,
    seed: int = 0,
    **unet_settings: Any,
) -> Path:
    """Build a checkpoint in `folder` and return it. The refiner has only the second text encoder.

    `variant="fp16"` adds half-precision files to the full ones.
    """
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLInpaintPipeline,
        StableDiffusionXLPipeline,
    )

    folder, refiner = Path(folder), kind == "refiner"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet(
            in_channels=9 if kind == "inpaint" else 4,
            **{
                "sample_size": DEFAULT_SIDE // 8,
                "use_linear_projection": True,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 1, 2),
                "attention_head_dim": (1, 2, 4),
                "cross_attention_dim": 40 if refiner else 32 + 40,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": _SIZE_ID,
                "projection_class_embeddings_input_dim": _POOLED + (5 if refiner else 6) * _SIZE_ID,
                **unet_settings,
            },
        )
        components = {
            "vae": tiny_vae(scaling_factor=0.13025, force_upcast=force_upcast),
            "text_encoder": None if refiner else tiny_text_encoder(),
            "text_encoder_2": _second_text_encoder(),
            "tokenizer": None if refiner else tiny_tokenizer(),
            "tokenizer_2": tiny_tokenizer(version=2),
            "unet": unet,
            "scheduler": EulerDiscreteScheduler(**_EULER),
        }
        switches: dict[str, Any] = {"add_watermarker": False}
        front: Any = StableDiffusionXLPipeline
        if kind != "base":
            front = StableDiffusionXLImg2ImgPipeline if refiner else StableDiffusionXLInpaintPipeline
            switches |= {"requires_aesthetics_score": refiner, "force_zeros_for_empty_prompt": not refiner}
    if variant is not None:
        # First, because both write config.json, which on the hub is that of full precision.
        front(**halved(components), **switches).save_pretrained(folder, variant=variant)
    front(**components, **switches).save_pretrained(folder)
    if not refiner:
        write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", version=2)
    return folder


def _second_text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=_POOLED,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return randomised(CLIPTextModelWithProjection(config))


tiny_sdxl = checkpoint_fixture("tiny_sdxl", stable_diffusion_xl)
tiny_sdxl_inpaint = checkpoint_fixture("tiny_sdxl_inpaint", stable_diffusion_xl, kind="inpaint", seed=1)
tiny_sdxl_refiner = checkpoint_fixture("tiny_sdxl_refiner", stable_diffusion_xl, kind="refiner", seed=2)
