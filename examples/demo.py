"""The whole path in a minute and without a download: `make demo`.

A small Stable Diffusion inpainting checkpoint is made from random numbers, saved, and then used the
way any other is. It has learnt nothing, so the hole fills with coloured noise.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from retouch import (
    AutoencoderKL,
    AutoPipelineForInpainting,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from retouch.utils import make_image_grid

WIDTH, HEIGHT = 384, 256

EXPLANATION = """
Done in {seconds:.1f} s. {folder}/grid.png shows photo.png, mask.png and result.png side by side.

The checkpoint in {folder}/checkpoint is random and has learnt nothing, so the hole holds coloured noise;
outside it the photo is untouched. For a real picture name a trained checkpoint (about 3 GB, once):

    AutoPipelineForInpainting.from_pretrained("stable-diffusion-v1-5/stable-diffusion-inpainting")

and go on as README.md shows."""


def make_checkpoint(folder: Path) -> None:
    """Save untrained models of SD 1.5's shape, a few hundred kilobytes instead of gigabytes."""
    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text_width = 32
    StableDiffusionInpaintPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=len(tokens) - 2,
                eos_token_id=len(tokens) - 1,
                pad_token_id=len(tokens) - 1,
            )
        ),
        tokenizer=CLIPTokenizer(
            vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
        ),
        unet=UNet2DConditionModel(
            sample_size=32,
            in_channels=9,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=text_width,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
        ),
    ).save_pretrained(folder)


def make_photo() -> tuple[Image.Image, Image.Image]:
    """A hill under a morning sky with a rock on it, and the mask that covers the rock."""
    photo, mask = Image.new("RGB", (WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(photo)
    for y in range(HEIGHT):
        light = y / HEIGHT
        draw.line(
            (0, y, WIDTH, y), fill=(int(110 + 130 * light), int(160 + 50 * light), int(225 - 40 * light))
        )
    draw.ellipse((275, 35, 325, 85), fill=(255, 240, 190))
    draw.ellipse((-120, 150, 300, 420), fill=(88, 130, 78))
    draw.polygon([(110, 200), (130, 130), (175, 110), (215, 145), (225, 205)], fill=(120, 112, 108))
    draw.ellipse((150, 175, 560, 440), fill=(66, 108, 66))
    ImageDraw.Draw(mask).ellipse((90, 90, 245, 225), fill=255)
    return photo, mask


def main(folder: Path) -> None:
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    make_checkpoint(folder / "checkpoint")
    photo, mask = make_photo()

    pipeline = AutoPipelineForInpainting.from_pretrained(folder / "checkpoint")
    painted = pipeline(
        prompt="a small red cabin",
        image=photo,
        mask_image=mask,
        num_inference_steps=12,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    result = pipeline.image_processor.apply_overlay(mask, photo, painted)

    photo.save(folder / "photo.png")
    mask.save(folder / "mask.png")
    result.save(folder / "result.png")
    make_image_grid([photo, mask.convert("RGB"), result], rows=1, cols=3).save(folder / "grid.png")
    print(EXPLANATION.format(folder=folder, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
