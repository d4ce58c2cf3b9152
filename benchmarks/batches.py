"""Measure the throughput of batches, and compare their pictures with those made one at a time.

Runs different pictures, masks, prompts and seeds through a pipeline of a trained checkpoint (the built-in
one, or --model) in batches of 1, 2, 4 and 8 on one thread. Reports medians of CPU seconds, measured in turns.
--large adds a guided step of SD 1.5's full-size inpainting UNet at 512x512, with seeded random weights.

    python benchmarks/batches.py [--quick] [--large] [--model FOLDER] [--output result.json]
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import PROMPTS, ROOT, asked, circumstances, large_unet, print_table, write

import retouch

SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    batch: int
    dtype: str
    seconds_each: float  # CPU time for one picture
    a_minute: float  # pictures per minute and core
    worst_difference: int  # from the pictures made one at a time, of 255
    differing: float  # share of the values that differ


def inputs(side: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return a different part of the photo and a different mask for each prompt."""
    photo = Image.open(ROOT / "examples" / "lake.jpg")
    pictures, masks = [], []
    for index in range(len(PROMPTS)):
        left, top = 70 * index, 20 * index
        pictures.append(photo.crop((left, top, left + 200, top + 200)).resize((side, side)))
        mask = Image.new("L", (side, side))
        at, wide = side // 8 + 2 * index, side // 2
        mask.paste(255, (at, side // 4, at + wide, side // 4 + wide))
        masks.append(mask)
    return pictures, masks


def pictures_of(model: str, steps: int, repeats: int) -> list[Row]:
    rows = []
    for dtype in ("float32", "bfloat16"):
        pipeline = retouch.load(model, device="cpu", dtype=dtype, progress=False).pipeline
        pipeline.set_progress_bar_config(disable=True)
        pictures, masks = inputs(pipeline.default_size)

        def paint(batch: int, pipeline: Any = pipeline, given: Any = (pictures, masks)) -> np.ndarray:
            made = []
            for first in range(0, len(PROMPTS), batch):
                part = slice(first, first + batch)
                seeds = range(first, first + batch)
                made += pipeline(
                    list(PROMPTS[part]),
                    given[0][part],
                    given[1][part],
                    num_inference_steps=steps,
                    guidance_scale=2.5,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                ).images
            return np.stack([np.asarray(picture) for picture in made]).astype(int)

        paint(1)
        times: dict[int, list[float]] = {batch: [] for batch in SIZES}
        made = {}
        for _ in range(repeats):
            for batch in SIZES:
                start = time.process_time()
                made[batch] = paint(batch)
                times[batch].append((time.process_time() - start) / len(PROMPTS))
        for batch in SIZES:
            seconds, off = statistics.median(times[batch]), np.abs(made[batch] - made[1])
            rows.append(Row(batch, dtype, seconds, 60 / seconds, int(off.max()), float((off > 0).mean())))
    print_table(
        ("batch", "dtype", "s a picture", "a minute and core", "worst difference", "values that differ"),
        [
            (
                row.batch,
                row.dtype,
                f"{row.seconds_each:.3f}",
                f"{row.a_minute:.1f}",
                row.worst_difference,
                f"{100 * row.differing:.2f} %",
            )
            for row in rows
        ],
    )
    return rows


@torch.no_grad()
def large(repeats: int) -> dict[int, float]:
    """Return the CPU seconds of a step divided by the batch size, for each batch size."""
    unet = large_unet()
    seconds = {}
    for batch in SIZES:
        latents = torch.randn(2 * batch, 9, 64, 64).bfloat16()
        text = torch.randn(2 * batch, 77, 768).bfloat16()
        times = []
        for _ in range(repeats + 1):
            start = time.process_time()
            unet(latents, torch.tensor(501), text)
            times.append((time.process_time() - start) / batch)
        seconds[batch] = statistics.median(times[1:])
    print_table(
        ("batch", "s a picture and step, SD 1.5, bfloat16"),
        [(batch, f"{value:.2f}") for batch, value in seconds.items()],
    )
    return seconds


def main() -> None:
    given = asked(
        __doc__,
        "batches",
        quick="fewer steps, once",
        large="a step of SD 1.5's UNet too (takes 6 GB)",
    )
    torch.set_num_threads(1)
    figures = circumstances(given)
    rows = pictures_of(given.model, 4 if given.quick else 20, 1 if given.quick else 3)
    if given.large:
        figures["step_of_sd15"] = large(1 if given.quick else 3)
    write(figures, rows, given)


if __name__ == "__main__":
    main()
