"""Measure the time that each speed preset and option saves, and how much it changes the picture.

Edits one photo with a trained checkpoint (the built-in one, or --model), and compares each setting with our
exact result for the same seed: CPU seconds for the call on one thread, PSNR and the worst pixel in the hole.
For scale, the same edit is made in bfloat16 and with another seed. --large adds a step of SD 1.5's full-size
UNet with seeded random weights, which shows the saved time but not the effect on pictures.

    python benchmarks/speed_words.py [--quick] [--large] [--model FOLDER] [--output result.json]

Without --quick, the built-in checkpoint's pictures go into docs/pictures/speed_words.jpg.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from report import PROMPTS, ROOT, asked, circumstances, large_unet, print_table, write

import retouch
from retouch.editing.editor import Editor
from retouch.editing.speed import SPEEDS
from retouch.kernels import int8_copy
from retouch.kernels.cpu import int8

BOXES = ((300, 186, 430, 316), (60, 200, 180, 330), (480, 150, 640, 300), (200, 40, 300, 140))

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "guidance_interval=(0.2, 1)": {"guidance_interval": (0.2, 1.0)},
    "guidance_interval=(0.4, 1)": {"guidance_interval": (0.4, 1.0)},
    "reuse_deep_features=2": {"reuse_deep_features": 2},
    "reuse_deep_features=3": {"reuse_deep_features": 3},
    "reuse_deep_features=5": {"reuse_deep_features": 5},
    "steps=10": {"steps": 10},
    'steps=12, scheduler="dpm++ 2m"': {"steps": 12, "scheduler": "dpm++ 2m"},
    'steps=8, scheduler="dpm++ 2m"': {"steps": 8, "scheduler": "dpm++ 2m"},
    'steps=6, scheduler="dpm++ 2m"': {"steps": 6, "scheduler": "dpm++ 2m"},
    'steps=8, scheduler="unipc"': {"steps": 8, "scheduler": "unipc"},
    **({"int8=True": {"int8": True}} if int8.is_available() else {}),
    'speed="balanced"': {"speed": "balanced"},
    'speed="fast"': {"speed": "fast"},
}
SHEET = ROOT / "docs" / "pictures" / "speed_words.jpg"
SHOWN = (
    "exact",
    *(name for name in SETTINGS if name.startswith(("speed", "int8", "reuse", "guidance"))),
    "another seed",
)


@dataclass(frozen=True)
class Row:
    """The figures of a setting, over all edits."""

    setting: str
    seconds: float  # CPU time, median over edits
    times_as_fast: float
    psnr_in_hole: float  # from the mean square error over all holes, dB
    psnr_of_each: list[float]
    worst_pixel: int  # largest difference of one value, of 255


@dataclass(frozen=True)
class Painted:
    seconds: float
    pixels: np.ndarray
    hole: np.ndarray


def paint(editor: Editor, index: int, seed: int = 0, **options: Any) -> Painted:
    """Make one edit with an editor that has an empty cache."""
    fresh = Editor(editor.pipeline, editor.model, show_progress=False)
    fresh._rounded = editor._rounded  # the UNet in 8 bits is made only once
    box, prompt = BOXES[index % len(BOXES)], PROMPTS[index % len(PROMPTS)]
    start = time.process_time()
    edit = fresh.inpaint(photo(), box, prompt, seed=100 * seed + index, **options)
    return Painted(time.process_time() - start, np.asarray(edit.image), np.asarray(edit.mask) >= 128)


def photo() -> Image.Image:
    return Image.open(ROOT / "examples" / "lake.jpg")


def psnr(error: np.ndarray) -> float:
    mean = float(np.mean(np.square(error, dtype=np.float64)))
    return float("inf") if mean == 0 else 10 * np.log10(255**2 / mean)


def row_of(setting: str, exact: list[Painted], found: list[Painted]) -> Row:
    errors = [
        (one.pixels.astype(int) - other.pixels)[one.hole] for one, other in zip(exact, found, strict=True)
    ]
    seconds, ratios = (
        statistics.median(values)
        for values in (
            [painted.seconds for painted in found],
            [one.seconds / other.seconds for one, other in zip(exact, found, strict=True)],
        )
    )
    worst = max(int(np.abs(error).max()) for error in errors)
    return Row(setting, seconds, ratios, psnr(np.concatenate(errors)), [psnr(e) for e in errors], worst)


def words(model: str, count: int) -> list[Row]:
    """Return a row for each setting. Settings take turns, so that other load affects all equally."""
    editor = retouch.load(model, device="cpu", dtype="float32", progress=False)
    half = retouch.load(model, device="cpu", dtype="bfloat16", progress=False)
    if int8.is_available():
        editor.inpaint(photo(), BOXES[0], "a cat", steps=2, int8=True)
    paint(editor, 0, steps=2)
    paint(half, 0, steps=2)
    found: dict[str, list[Painted]] = {name: [] for name in (*SETTINGS, "bfloat16", "another seed")}
    for index in range(count):
        for name, options in SETTINGS.items():
            found[name].append(paint(editor, index, **options))
        found["bfloat16"].append(paint(half, index))
        found["another seed"].append(paint(editor, index, seed=1))
    rows = [row_of(name, found["exact"], painted) for name, painted in found.items()]
    print_table(
        ("setting", "s", "times as fast", "PSNR in the hole, dB", "of each edit", "worst pixel"),
        [
            (
                row.setting,
                f"{row.seconds:.2f}",
                f"{row.times_as_fast:.2f}",
                f"{row.psnr_in_hole:.1f}",
                f"{min(row.psnr_of_each):.1f} to {max(row.psnr_of_each):.1f}",
                row.worst_pixel,
            )
            for row in rows
        ],
    )
    if model == "builtin" and count == len(PROMPTS):  # the page shows all edits
        sheet(found).save(SHEET, quality=80)
    return rows


def sheet(found: dict[str, list[Painted]]) -> Image.Image:
    """Write a sheet with a row for each setting, showing the holes and their surroundings."""
    cell, label = 112, 210
    edits = found["exact"]
    page = Image.new("RGB", (label + cell * len(edits), cell * len(SHOWN)), "white")
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(SHOWN):
        draw.text((6, cell * (row + 0.45)), name, fill="black", font=ImageFont.load_default(size=15))
        for column, painted in enumerate(found[name]):
            left, top, right, bottom = BOXES[column % len(BOXES)]
            margin = max(right - left, bottom - top) // 5
            seen = Image.fromarray(painted.pixels).crop(
                (left - margin, top - margin, right + margin, bottom + margin)
            )
            page.paste(seen.resize((cell - 2, cell - 2)), (label + cell * column, cell * row))
    return page


@torch.no_grad()
def large(repeats: int) -> dict[str, float]:
    """Return the CPU seconds for a step of SD 1.5's inpainting UNet at 512x512, for each shortcut."""
    unet = large_unet()
    latents, text = torch.randn(2, 9, 64, 64).bfloat16(), torch.randn(2, 77, 768).bfloat16()
    timestep = torch.tensor(501)

    def step(model: Any, rows: int, deep: torch.Tensor | None = None) -> torch.Tensor:
        return model(latents[-rows:], timestep, text[-rows:], deep=deep).sample

    deep = unet(latents, timestep, text, return_deep=True).deep
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "guided": lambda: step(unet, 2),
        "without guidance": lambda: step(unet, 1),
        "guided, deep features reused": lambda: step(unet, 2, deep),
    }
    if int8.is_available():
        rounded = int8_copy(unet)
        ways["guided, int8"] = lambda: step(rounded, 2)
        ways["guided, int8, deep features reused"] = lambda: step(rounded, 2, deep)
    exact = ways["guided"]().float()
    for name, run in ways.items():
        if "int8" in name:
            error = (run().float() - exact).square().mean() / (exact.max() - exact.min()) ** 2
            print(f"{name}: {-10 * error.log10():.1f} dB from bfloat16")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print_table(
        ("step of SD 1.5's UNet, 512x512, bfloat16", "s", "share"),
        [(name, f"{value:.2f}", f"{value / seconds['guided']:.2f}") for name, value in seconds.items()],
    )
    return seconds


def main() -> None:
    given = asked(
        __doc__,
        "speed_words",
        quick="two edits instead of eight",
        large="also a step of SD 1.5's UNet (needs 4 GB)",
    )
    torch.set_num_threads(1)
    figures = circumstances(given)
    figures["words"] = {word: dict(settings) for word, settings in SPEEDS.items()}
    rows = words(given.model, 2 if given.quick else len(PROMPTS))
    if given.large:
        figures["step_of_sd15"] = large(2 if given.quick else 5)
    write(figures, rows, given)


if __name__ == "__main__":
    main()
