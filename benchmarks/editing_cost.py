"""Measure the time of an edit by the size of the hole and of the photo, compared with editing its crop alone.

The built-in checkpoint paints with its defaults. It is the fastest checkpoint, so the work around the
painting has the largest share. For comparison, a network with random weights and a tenth of SD 1.5's UNet is
measured as well (not with --quick). An edit and its crop alone are measured in turns, each by an editor with
an empty cache. Reports medians. Writes benchmarks/results/editing_cost.json, two plots, and the figures in
docs/editing.md.

    python benchmarks/editing_cost.py [--quick] [--threads 2]

Takes a few minutes on two quiet cores. On a busy machine: --quick --threads 1 --cpu-time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import retouch
from retouch.editing.editor import Editor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from full_size_check import machine  # noqa: E402
from plots import plot  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "editing_cost.json"
PAGE = ROOT / "docs" / "editing.md"
PICTURES = ROOT / "docs" / "pictures"
BLOCK = re.compile(r"(<!-- editing cost.*?-->\n).*?(<!-- end of editing cost -->)", re.DOTALL)
TWELVE = (4000, 3000)
SIZES = ((640, 480), (1152, 864), (2000, 1500), TWELVE, (5656, 4242), (8000, 6000))
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25)
FIXED = (300, 200)
MIDDLE: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (96, 192, 384, 384),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "sample_size": 64,
    },
    "vae": {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 32, "layers_per_block": 2},
}

Box = tuple[int, int, int, int]
Clock = Callable[[], float]


def middle(folder: str) -> Editor:
    """Return an editor with the UNet and VAE of SD 1.5 with fewer channels, and random weights."""
    import tiny_checkpoints

    tiny_checkpoints.stable_diffusion(folder, in_channels=9)
    editor = retouch.load(folder, device="cpu", dtype="float32", progress=False)
    unet = dict(editor.pipeline.unet.config.to_dict()) | MIDDLE["unet"]
    vae = dict(editor.pipeline.vae.config.to_dict()) | MIDDLE["vae"]
    editor.pipeline.unet = retouch.UNet2DConditionModel.from_config(unet).eval()
    editor.pipeline.vae = retouch.AutoencoderKL.from_config(vae).eval()
    return editor


def photo_of(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(0)
    coarse = draw.uniform(40, 215, (30, 40, 3)).astype(np.float32)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels += cv2.resize(draw.normal(0, 8, (500, 500)).astype(np.float32), (width, height))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def centred(hole: tuple[int, int], photo: tuple[int, int]) -> Box:
    left, top = ((whole - part) // 2 for whole, part in zip(photo, hole, strict=True))
    return left, top, left + hole[0], top + hole[1]


def share_of(share: float, photo: tuple[int, int]) -> Box:
    return centred((round(photo[0] * share**0.5), round(photo[1] * share**0.5)), photo)


def measure(
    editor: Editor, photo: Image.Image, hole: Box, runs: int, clock: Clock, **options: Any
) -> dict[str, Any]:
    """Measure an edit and its crop alone in turns. Return the medians of their seconds, and the ratio."""

    def timed(picture: Image.Image, box: Box, **more: Any) -> tuple[float, retouch.Edit]:
        fresh = Editor(editor.pipeline, show_progress=False)
        start = clock()
        edit = fresh.inpaint(picture, box, "a red apple", seed=1, **{"matte": False, **options, **more})
        return clock() - start, edit

    pairs, parts = [], []
    for _ in range(runs):
        seconds, edit = timed(photo, hole)
        left, top = edit.crop[:2]
        inner = (hole[0] - left, hole[1] - top, hole[2] - left, hole[3] - top)
        alone, other = timed(photo.crop(edit.crop), inner, context=10**6)
        painted = [(each.width, each.height) for each in (*edit.crops, *other.crops)]
        if len(painted) != 2 or painted[0] != painted[1]:
            raise SystemExit(
                f"The crop alone is painted at another size: {painted}. They cannot be compared."
            )
        pairs.append((seconds, alone))
        parts.append(edit.timings)
    whole, alone = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        "photo": photo.size,
        "hole": (hole[2] - hole[0], hole[3] - hole[1]),
        "crop": edit.crops[0].size,
        "painted": painted[0],
        "seconds": whole,
        "crop_alone": alone,
        "ratio": whole / alone,
        "parts_by_the_clock": {name: statistics.median(each[name] for each in parts) for name in parts[0]},
    }


def told(label: str, point: dict[str, Any]) -> dict[str, Any]:
    crop, painted = ("x".join(map(str, point[name])) for name in ("crop", "painted"))
    print(
        f"| {label} | {crop} at {painted} | {point['seconds']:.2f} | {point['crop_alone']:.2f} | "
        f"{point['ratio']:.2f} |",
        flush=True,
    )
    return point


def files(photo: Image.Image, folder: Path, clock: Clock) -> dict[str, float]:
    """Return the seconds for opening and for saving a photo."""
    seconds = {}
    for suffix in (".jpg", ".png"):
        start = clock()
        photo.save(folder / f"photo{suffix}")
        seconds[f"save {suffix}"] = clock() - start
        start = clock()
        retouch.load_image(folder / f"photo{suffix}")
        seconds[f"open {suffix}"] = clock() - start
    return seconds


def draw(found: dict[str, Any]) -> None:
    seconds = "seconds of the processor" if found["clock"] == "processor" else "seconds"
    holes, fixed, grown = (found[name] for name in ("by_hole", "by_photo_fixed_hole", "by_photo_1_percent"))
    shares = [100 * share for share in SHARES]

    def line(points: list[dict[str, Any]], name: str = "seconds") -> list[tuple[float, float]]:
        """Return (megapixels, value) for each point."""
        return [(round(np.prod(point["photo"]) / 1e6, 1), point[name]) for point in points]

    plot(
        PICTURES / "editing_cost_hole.png",
        "Time of an edit by the size of the hole, in a photo of 12 megapixels",
        "hole, in per cent of the photo",
        seconds,
        {
            "edit in the photo": [(x, point["seconds"]) for x, point in zip(shares, holes, strict=True)],
            "its crop alone": [(x, point["crop_alone"]) for x, point in zip(shares, holes, strict=True)],
        },
        shares,
    )
    plot(
        PICTURES / "editing_cost_photo.png",
        "Time of an edit by the size of the photo",
        "photo, in megapixels",
        seconds,
        {
            "hole of 1 % of the photo": line(grown),
            f"hole of {FIXED[0]}x{FIXED[1]} pixels": line(fixed),
            "crop of the latter alone": line(fixed, "crop_alone"),
        },
        [x for x, _ in line(fixed)],
    )


def text(found: dict[str, Any]) -> str:
    """Return the block of figures for the page."""
    one, holes, fixed = (found[name] for name in ("one_percent", "by_hole", "by_photo_fixed_hole"))
    smallest, largest, seconds = holes[0], holes[-1], found["files"]
    clock = "seconds of the processor" if found["clock"] == "processor" else "seconds"
    rows = [("the built-in checkpoint, 12 steps", one)]
    if "middle" in found:
        rows.append(("a tenth of SD 1.5's UNet, 4 steps at 512", found["middle"]))
    lines = [
        f"Time of an edit with a hole of 1 % in a photo of 12 megapixels, compared with editing its crop as "
        f"a photo of its own ({clock}; {found['machine']}, threads: {found['threads']}):",
        "",
        "| model | crop, painted at | in 12 megapixels | crop alone | ratio |",
        "|---|---|---|---|---|",
    ]
    for label, point in rows:
        crop, painted = ("x".join(map(str, point[name])) for name in ("crop", "painted"))
        figures = f"{point['seconds']:.2f} | {point['crop_alone']:.2f} | {point['ratio']:.2f}"
        lines.append(f"| {label} | {crop}, {painted} | {figures} |")
    lines += [
        "",
        "The goal is a ratio of 1.15 at most. The extra time, "
        f"{one['seconds'] - one['crop_alone']:.2f} s, does not depend on the model. So its share is largest "
        "with the built-in checkpoint, which is faster than any other.",
        "",
        "![Time against the size of the hole](pictures/editing_cost_hole.png)",
        "",
        f"From a hole of 0.1 % to one of {100 * SHARES[-1]:g} %, the time grows from "
        f"{smallest['seconds']:.2f} s to {largest['seconds']:.2f} s. The built-in checkpoint paints every "
        "crop at 128x128; the growing part is joining at the photo's resolution and measuring the seam. A "
        "checkpoint that paints large crops twice takes several times as long for them.",
        "",
        "![Time against the size of the photo](pictures/editing_cost_photo.png)",
        "",
        f"With a hole of {FIXED[0]}x{FIXED[1]} pixels, a photo of 48 megapixels takes "
        f"{fixed[-1]['seconds']:.2f} s and one of 0.3 megapixels {fixed[0]['seconds']:.2f} s; the growing "
        "part is copying the photo.",
        "",
        f"Opening the photo of 12 megapixels takes {seconds['open .jpg']:.2f} s as JPEG and "
        f"{seconds['open .png']:.2f} s as PNG; saving it as PNG takes {seconds['save .png']:.1f} s.",
    ]
    return "\n".join(line if line.startswith(("|", "!")) else fill(line, 120) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs; without the larger network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, for a busy machine; use with --threads 1"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--report-only", action="store_true", help="make the plots and the page from the saved results"
    )
    given = parser.parse_args()
    if not given.report_only:
        given.output.write_text(json.dumps(measured(given), indent=1) + "\n")
    found = json.loads(given.output.read_text())
    draw(found)
    page, count = BLOCK.subn(lambda block: f"{block[1]}\n{text(found)}\n\n{block[2]}", PAGE.read_text())
    if count != 1:
        raise SystemExit(f"{PAGE} has {count} blocks of editing cost; one is expected.")
    PAGE.write_text(page)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    clock = time.process_time if given.cpu_time else time.perf_counter
    runs = 2 if given.quick else 7
    print(f"{machine()}, {given.threads} threads\n")
    found: dict[str, Any] = {
        "machine": machine(),
        "threads": given.threads,
        "clock": "processor" if given.cpu_time else "wall",
        "load_average": os.getloadavg(),
        "runs": runs,
    }
    builtin = retouch.load("builtin", device="cpu", progress=False)
    photo = photo_of(*TWELVE)
    print("| hole and photo | crop | seconds | crop alone | ratio |\n|---|---|---|---|---|")
    measure(builtin, photo, share_of(0.01, TWELVE), 1, clock)  # warms up
    found["one_percent"] = told(
        "1 %, 12 MP", measure(builtin, photo, share_of(0.01, TWELVE), 2 * runs + 1, clock)
    )
    found["by_hole"] = [
        told(f"{100 * share:g} %, 12 MP", measure(builtin, photo, share_of(share, TWELVE), runs, clock))
        for share in SHARES
    ]
    found["by_photo_fixed_hole"], found["by_photo_1_percent"] = [], []
    for size in SIZES:
        label, picture = f"{size[0] * size[1] / 1e6:.1f} MP", photo_of(*size)
        point = measure(builtin, picture, centred(FIXED, size), runs, clock)
        found["by_photo_fixed_hole"].append(told(f"{FIXED[0]}x{FIXED[1]}, {label}", point))
        point = measure(builtin, picture, share_of(0.01, size), runs, clock)
        found["by_photo_1_percent"].append(told(f"1 %, {label}", point))
    with tempfile.TemporaryDirectory() as folder:
        if not given.quick:
            options = {"size": 512, "steps": 4, "scheduler": "ddim"}
            point = measure(middle(f"{folder}/model"), photo, share_of(0.01, TWELVE), 3, clock, **options)
            found["middle"] = told("1 %, 12 MP, larger network", point)
        found["files"] = files(photo, Path(folder), clock)
    return found


if __name__ == "__main__":
    main()
