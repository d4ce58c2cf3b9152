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

from retouch import AutoPipelineForInpainting
from retouch.cli.self_test import tiny_pipeline
from retouch.utils import make_image_grid

WIDTH, HEIGHT = 384, 256

EXPLANATION = """
Done in {seconds:.1f} s. {folder}/grid.png shows photo.png, mask.png and result.png side by side.

The checkpoint in {folder}/checkpoint is random and has learnt nothing, so the hole holds coloured noise;
outside it the photo is untouched. For a real picture name a trained checkpoint (4.3 GB, once):

    retouch inpaint photo.png mask.png "a stone bench" --model sd15-inpaint

and go on as README.md shows."""


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
    tiny_pipeline().save_pretrained(folder / "checkpoint")
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
