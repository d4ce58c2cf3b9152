"""What an edit costs: with a small hole in a large photo, by the size of the photo and by that of the hole.

The model is made of random numbers: a tiny one, so that what we do around it shows, or a middling one (a
tenth of SD 1.5's UNet), to see it in proportion. Times are the best of a few runs.

    python benchmarks/editing_cost.py [--model tiny|middle] [--steps 4] [--runs 3]
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import retouch
from retouch.editing.editor import Editor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TWELVE = (4000, 3000)
SHAPES = {
    "tiny": {},
    "middle": {
        "unet": {
            "block_out_channels": (96, 192, 384, 384),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "attention_head_dim": 8,
            "norm_num_groups": 32,
            "sample_size": 64,
        },
        "vae": {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 32, "layers_per_block": 2},
    },
}


def made(kind: str, folder: str) -> Editor:
    import tiny_checkpoints

    tiny_checkpoints.stable_diffusion(folder, in_channels=9)
    editor = retouch.load(folder, device="cpu", dtype="float32", progress=False)
    shape: dict[str, Any] = SHAPES[kind]
    if shape:
        unet = dict(editor.pipeline.unet.config.to_dict()) | shape["unet"]
        vae = dict(editor.pipeline.vae.config.to_dict()) | shape["vae"]
        editor.pipeline.unet = retouch.UNet2DConditionModel.from_config(unet).eval()
        editor.pipeline.vae = retouch.AutoencoderKL.from_config(vae).eval()
    return editor


def photo_of(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(0)
    coarse = draw.uniform(40, 215, (30, 40, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(draw.normal(0, 8, (500, 500, 1)).astype(np.float32), (width, height))
    return Image.fromarray(np.clip(smooth + grain[..., None], 0, 255).astype(np.uint8))


def box_of(share: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in the middle, of a share of the photo."""
    width, height = (round(side * share**0.5) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def best(run: Callable[[], retouch.Edit], runs: int) -> tuple[float, retouch.Edit]:
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        edit = run()
        found.append((time.perf_counter() - start, edit))
    return min(found, key=lambda pair: pair[0])


def row(label: str, seconds: float, edit: retouch.Edit) -> None:
    parts = [f"{edit.timings[name]:.2f}" for name in ("prepare", "paint", "join", "finish")]
    crops = ", ".join(f"{crop.size[0]}x{crop.size[1]} at {crop.width}x{crop.height}" for crop in edit.crops)
    print(f"| {label} | {crops} | {seconds:.2f} | {' | '.join(parts)} |", flush=True)


def table(first: str) -> None:
    print(f"\n| {first} | crop | seconds | prepare | paint | join | finish |\n{'|---' * 7}|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        editor = made(given.model, f"{folder}/model")
        options = {"size": 512, "steps": given.steps, "seed": 1, "scheduler": "ddim"}
        print(
            f"{platform.machine()}, one thread, torch {torch.__version__}; {given.model}, {given.steps} steps"
        )

        def fresh(photo: Image.Image, hole: Any, **more: Any) -> retouch.Edit:
            """By an editor that has kept nothing of the last run."""
            return Editor(editor.pipeline, show_progress=False).inpaint(photo, hole, **options, **more)

        photo, hole = photo_of(*TWELVE), box_of(0.01, TWELVE)
        seconds, edit = best(partial(fresh, photo, hole), given.runs)
        left, top = edit.crop[:2]
        part, inner = photo.crop(edit.crop), (hole[0] - left, hole[1] - top, hole[2] - left, hole[3] - top)
        table("1 % hole")
        row("in 12 megapixels", seconds, edit)
        row("its crop alone", *best(partial(fresh, part, inner, context=10**6), given.runs))
        kept = partial(editor.inpaint, photo, hole, **options)
        row("in 12 megapixels, again", *best(kept, given.runs + 1))
        for suffix in (".jpg", ".png"):
            path = Path(folder) / f"photo{suffix}"
            photo.save(path)
            start = time.perf_counter()
            retouch.load_image(path)
            print(f"\nopening {suffix}: {time.perf_counter() - start:.2f} s", end="")
        start = time.perf_counter()
        edit.save(Path(folder) / "result.png")
        print(f", saving .png: {time.perf_counter() - start:.2f} s")

        table("photo, hole of 300x200")
        for size in (640, 480), (1280, 960), TWELVE, (8000, 6000), (11600, 8700):
            middle = (size[0] // 2, size[1] // 2, size[0] // 2 + 300, size[1] // 2 + 200)
            label = f"{size[0] * size[1] / 1e6:.1f} MP"
            row(label, *best(partial(fresh, photo_of(*size), middle), given.runs))

        table("hole in 12 megapixels")
        for share in (0.0001, 0.001, 0.01, 0.05, 0.2, 0.6) if given.model == "tiny" else (0.001, 0.01, 0.05):
            row(f"{100 * share:g} %", *best(partial(fresh, photo, box_of(share, TWELVE)), 1))


if __name__ == "__main__":
    main()
