"""A checkpoint of random numbers, built in memory, and one inpainting with it.

It tells whether all that an edit needs works on this device in this precision. Nothing is downloaded, and the
picture is noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retouch.editing.editor import Editor
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.unet import UNet2DConditionModel
from retouch.pipelines.components import clip_tokenizer
from retouch.pipelines.names import StableDiffusionInpaintPipeline
from retouch.schedulers import DDIMScheduler

_STEPS, _SIDE = 4, 128


@dataclass(frozen=True)
class SelfTest:
    """How it went: `fault` says what is wrong, if anything."""

    seconds: float
    fault: str | None = None


def run_self_test(device: torch.device, dtype: torch.dtype) -> SelfTest:
    """Repaint a square of a small photo; only that may change, and it must."""
    photo = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    hole = np.zeros((_SIDE, _SIDE), bool)
    hole[40:88, 40:88] = True
    editor = Editor(tiny_pipeline().to(device, dtype), "self-test", show_progress=False)
    start = time.perf_counter()
    edit = editor.inpaint(photo, hole, "a self-test", steps=_STEPS, seed=0, size=_SIDE, feather=0)
    seconds = time.perf_counter() - start
    result = np.asarray(edit.image)
    if (result[~hole] != photo[~hole]).any():
        return SelfTest(seconds, "pixels outside the hole changed")
    if (result[hole] != photo[hole]).any(axis=-1).mean() < 0.5:
        return SelfTest(seconds, "the hole was not repainted")
    return SelfTest(seconds)


def tiny_pipeline() -> Any:
    """Stable Diffusion inpainting with a few thousandths of its weights, all random."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StableDiffusionInpaintPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16),
                layers_per_block=1,
                norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=width,
                    intermediate_size=2 * width,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                    bos_token_id=0,
                    eos_token_id=2,
                    pad_token_id=1,
                )
            ).eval(),
            tokenizer=clip_tokenizer(pad_token="<|endoftext|>"),
            unet=UNet2DConditionModel(
                sample_size=_SIDE // 8,
                in_channels=9,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                block_out_channels=(16, 32),
                layers_per_block=1,
                attention_head_dim=4,
                cross_attention_dim=width,
                norm_num_groups=8,
            ),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                steps_offset=1,
                clip_sample=False,
            ),
        )
