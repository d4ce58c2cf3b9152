"""Measure the time of previews and their distance from the exact picture, for a tiny decoder and a linear
map.

Runs the built-in checkpoint on photos that it was never trained on, and decodes each step with the VAE, the
preview decoder and the linear map in turns. Then measures the time of Stable Diffusion's full-size decoders
with random weights. Reports CPU seconds on one thread. Needs the state folder of training.

    python -m benchmarks.previews --state FOLDER [--quick] [--output result.json] [--pictures FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import retouch
from benchmarks.builtin_painting import SIDE, defaults, framed, photo_and_hole, prompt_for
from benchmarks.builtin_quality import write_captioned
from benchmarks.full_size_check import machine
from retouch.checkpoints.shipped import shipped_folder
from retouch.kernels import optimize
from retouch.models.autoencoder import AutoencoderKL
from retouch.models.tiny_autoencoder import AutoencoderTiny
from retouch.pipelines.progress import linear_colours, preview
from training.data import Pictures
from training.sheets import to_bytes
from training.state import default_state
from training.train_vae import psnr, similarity

ROOT = Path(__file__).parents[1]
WORDS = ("apple", "cat", "car", "mushroom", "sailboat", "tree", "rocket", "rose")
WAYS = ("exact", "tiny", "linear")
SHOWN = (4, 8, 10, 12)  # steps on the sheet
# Stable Diffusion's autoencoder. AutoencoderTiny's defaults are TAESD, the tiny one for it.
FULL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


class Watched:
    """Every step of some runs, decoded in three ways, with the times."""

    def __init__(self, state: Path, dtype: str, count: int):
        load = retouch.AutoPipelineForInpainting.from_pretrained
        self.pipeline = load("builtin", dtype=dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = defaults(shipped_folder(), "inpaint")
        self.ways: dict[str, Callable[[Tensor], Tensor]] = {
            "exact": self.pipeline.decode,
            "tiny": lambda latents: preview(self.pipeline, latents),
            "linear": lambda latents: linear_colours(self.pipeline, latents),
        }
        pictures = Pictures.load(state, held_out=True)
        self.runs = [self._run(pictures, number) for number in range(-1, count)][1:]  # the first warms up

    @torch.no_grad()
    def _run(self, pictures: Pictures, number: int) -> dict[str, Any]:
        """Return the pixels (step, 3, height, width) and seconds of each way, and the seconds of a step."""
        picture, hole = framed(*photo_and_hole(pictures, 70_000 + number))
        seconds: dict[str, list[float]] = {way: [] for way in (*WAYS, "step")}
        pixels: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        start = time.process_time()
        for progress in self.pipeline.start(
            prompt_for(WORDS[number % len(WORDS)]),
            image=Image.fromarray(picture),
            mask_image=Image.fromarray(hole.astype(np.uint8) * 255),
            height=SIDE,
            width=SIDE,
            num_inference_steps=self.settings["steps"],
            guidance_scale=self.settings["guidance_scale"],
            generator=torch.Generator().manual_seed(number + 1),
        ):
            seconds["step"].append(time.process_time() - start)
            for way, decode in self.ways.items():
                start = time.process_time()
                found = decode(progress.latents)
                seconds[way].append(time.process_time() - start)
                pixels[way].append(found.float().clamp(-1, 1))
            start = time.process_time()
        return {"seconds": seconds, "pixels": {way: torch.cat(pixels[way]) for way in WAYS}}

    def milliseconds(self) -> dict[str, float]:
        """Return the median for a picture by each way, and for a step."""
        return {
            way: 1000 * statistics.median(value for run in self.runs for value in run["seconds"][way])
            for way in (*WAYS, "step")
        }

    def closeness(self) -> dict[str, dict[str, list[float]]]:
        """Return PSNR and SSIM to the exact picture at each step, over all runs."""
        exact = self._stacked("exact")
        return {
            way: {
                "psnr": [psnr(found, true) for found, true in zip(self._stacked(way), exact, strict=True)],
                "ssim": [
                    similarity(found, true).item()
                    for found, true in zip(self._stacked(way), exact, strict=True)
                ],
            }
            for way in WAYS[1:]
        }

    def _stacked(self, way: str) -> Tensor:
        return torch.stack([run["pixels"][way] for run in self.runs], dim=1)  # (step, run, 3, ...)

    def sheet(self, path: Path, count: int = 2) -> None:
        """Write a sheet with steps side by side and a row for each way."""
        cells, captions = [], []
        for run in self.runs[:count]:
            for way in WAYS:
                shown = to_bytes(run["pixels"][way])
                cells += [shown[step - 1] for step in SHOWN]
                captions += [f"{way}, step {step} of {len(shown)}" for step in SHOWN]
        write_captioned(path, cells, captions, len(SHOWN))


@torch.no_grad()
def full_size(dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Return the seconds for decoding a picture of 512x512 from latents of 64x64."""
    torch.manual_seed(0)
    vae, tiny = (optimize(model.to(dtype).eval()) for model in (AutoencoderKL(**FULL), AutoencoderTiny()))
    latents = torch.randn(1, 4, 64, 64, dtype=dtype)
    pipeline = SimpleNamespace(vae=vae, vae_scale_factor=8)
    ways: dict[str, Callable[[], Any]] = {
        "exact": lambda: vae.decode(latents),
        "tiny": lambda: tiny.decode(latents),
        "linear": lambda: linear_colours(pipeline, latents),
    }
    return timed(ways, repeats)


def timed(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median of each, measured in turns after a warm-up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, compute in ways.items():
            start = time.process_time()
            compute()
            seconds[way].append(time.process_time() - start)
    return {way: statistics.median(values[1:]) for way, values in seconds.items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, default=default_state(), help="the state folder of training")
    parser.add_argument("--quick", action="store_true", help="two runs instead of eight")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "previews.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg(), "builtin": {}, "sd": {}}
    print(f"{machine()}, one thread\n")
    for name in ("float32", "bfloat16"):
        watched = Watched(given.state, name, 2 if given.quick else len(WORDS))
        figures["builtin"][name] = {"milliseconds": watched.milliseconds(), **watched.closeness()}
        figures["sd"][name] = {"seconds": full_size(getattr(torch, name), 1 if given.quick else 5)}
        if name == "float32":
            watched.sheet(given.pictures / "previews.jpg")
    print("| | precision | exact | tiny | linear | a step |\n" + "|---" * 6 + "|")
    for name, found in figures["builtin"].items():
        times = [f"{found['milliseconds'][key]:.1f} ms" for key in (*WAYS, "step")]
        print(f"| built-in, 128x128 | {name} | {' | '.join(times)} |")
    for name, found in figures["sd"].items():
        times = [f"{1000 * found['seconds'][key]:,.1f} ms" for key in WAYS]
        print(f"| SD, 512x512 | {name} | {' | '.join(times)} | |")
    close = figures["builtin"]["float32"]
    steps = range(len(close["tiny"]["psnr"]))
    print("\n| to the exact picture |" + "".join(f" step {step + 1} |" for step in steps) + " mean |")
    print("|---" * (len(steps) + 2) + "|")
    for way in WAYS[1:]:
        for key, unit, digits in (("psnr", "PSNR, dB", 1), ("ssim", "SSIM", 2)):
            values = [*close[way][key], mean(close[way][key])]
            print(f"| {way}, {unit} |" + "".join(f" {value:.{digits}f} |" for value in values))
    given.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
