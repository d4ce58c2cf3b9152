"""Measure a common job, a hole of 256 pixels in a photo, with retouch and diffusers: seconds from call to
picture.

The model is full-size Stable Diffusion 1.5 for inpainting with seeded random weights, at 512x512 with
guidance. retouch runs `retouch.inpaint` with 20 steps, and with each speed preset. diffusers runs once with
its defaults (float32, 50 steps) and once tuned by its own guide (bfloat16, DPM-Solver++ with 20 steps,
channels-last). Each is its own process, with the model loaded and warm. Only some of the steps are run; the
time of the others is computed from their median, and a column says how many were run. Reports wall-clock and
CPU seconds; on a busy machine, use the latter. Pictures from random weights show no quality; speed_words.py
measures that.

    python benchmarks/common_job.py [--quick] [--threads 2] [--folder KEPT] [--output result.json]

Needs 8 GB of memory, and 2.1 GB of disk in the temporary folder or in --folder, which is kept for later runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from full_size_check import FAMILIES, alone, build, machine, peak_gigabytes  # noqa: E402

PROMPT = "a stone bench in a park, morning light"
SIDE, HOLE = 512, (128, 128, 384, 384)
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class Job:
    """One of the compared configurations."""

    label: str
    library: str
    steps: int
    options: dict[str, Any]


JOBS = (
    Job("diffusers, defaults: float32, 50 steps", "diffusers", 50, {"dtype": "float32"}),
    Job("diffusers, tuned: bfloat16, DPM-Solver++ 20 steps", "diffusers", 20, {"dtype": "bfloat16"}),
    Job("retouch, exact, float32", "retouch", 20, {"dtype": "float32", "speed": "exact"}),
    Job("retouch, exact", "retouch", 20, {"speed": "exact"}),
    Job("retouch, balanced", "retouch", 12, {"speed": "balanced"}),
    Job("retouch, fast", "retouch", 6, {"speed": "fast"}),
)


@dataclass(frozen=True)
class Measured:
    label: str
    load_seconds: float
    steps: int
    steps_taken: int
    seconds: float  # wall-clock time, for all steps
    processor_seconds: float
    step_seconds: float  # median
    gigabytes_at_peak: float


def prepare(folder: Path, threads: int) -> None:
    """Write the checkpoint, unless it exists."""
    if (folder / "model_index.json").is_file():
        return
    family = replace(FAMILIES["sd15-inpainting"], dtype=torch.bfloat16)
    for part in family.parts:
        alone(build, family, part, folder, 0, threads)
    alone(_prepare_text, folder)


def _prepare_text(folder: Path) -> None:
    from diffusers import PNDMScheduler
    from tiny_checkpoints import write_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    CLIPTextModel(CLIPTextConfig(**TEXT)).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    PNDMScheduler(**schedule, steps_offset=1, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": "0.6.0",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(40, 215, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def diffusers_job(job: Job, folder: Path) -> Callable[..., None]:
    """Return a function that runs a number of steps and calls `tick` after each."""
    import diffusers

    dtype = getattr(torch, job.options["dtype"])
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if job.options["dtype"] == "bfloat16":
        kind = diffusers.DPMSolverMultistepScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, HOLE)

    def run(steps: int, tick: Callable[[], None]) -> None:
        def listen(*_: Any) -> dict[str, Any]:
            tick()
            return {}

        pipeline(PROMPT, photo(), mask, num_inference_steps=steps, callback_on_step_end=listen)

    return run


def retouch_job(job: Job, folder: Path) -> Callable[..., None]:
    import retouch
    from retouch.editing.editor import Editor

    options = dict(job.options)
    editor = retouch.load(folder, device="cpu", dtype=options.pop("dtype", None), progress=False)
    if options["speed"] == "exact":
        options["steps"] = job.steps

    def run(steps: int, tick: Callable[[], None]) -> None:
        fresh = Editor(editor.pipeline, str(folder), show_progress=False)
        fresh._rounded = editor._rounded  # reuses the 8-bit UNet
        fresh.inpaint(photo(), HOLE, PROMPT, progress=lambda _: tick(), **{**options, "steps": steps})
        editor._rounded = fresh._rounded

    return run


def measure(job: Job, folder: Path, threads: int, limit: int) -> Measured:
    """Measure a job with at most `limit` steps; each step not run counts as the median of the others."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    run = (diffusers_job if job.library == "diffusers" else retouch_job)(job, folder)
    loaded = time.perf_counter() - start
    run(1, lambda: None)
    # With reuse, steps differ in cost, so only whole rounds are left out.
    every = {"balanced": 2, "fast": 2}.get(job.options.get("speed", ""), 1)
    taken = job.steps if job.steps <= limit else job.steps - every * -(-(job.steps - limit) // every)
    times: list[tuple[float, float]] = []

    def tick() -> None:
        times.append((time.perf_counter(), time.process_time()))

    begun = time.perf_counter(), time.process_time()
    run(taken, tick)
    ended = time.perf_counter(), time.process_time()
    missing = job.steps - taken
    seconds = []
    for clock in (0, 1):
        steps = [later[clock] - earlier[clock] for earlier, later in itertools.pairwise(times)]
        # A round is a full step and the steps that reuse its features; without reuse it is one step.
        rounds = [sum(steps[at : at + every]) for at in range(0, len(steps) - every + 1, every)]
        step = statistics.median(rounds) / every
        seconds.append((ended[clock] - begun[clock] + missing * step, step))
    return Measured(
        job.label, loaded, job.steps, taken, seconds[0][0], seconds[1][0], seconds[1][1], peak_gigabytes()
    )


def table(rows: list[Measured]) -> str:
    lines = [
        "| | steps | taken | s | processor s | times as fast as diffusers' defaults | as tuned | GB |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        ratios = " | ".join(f"{base.processor_seconds / row.processor_seconds:.1f}" for base in rows[:2])
        seconds = f"{row.seconds:.1f} | {row.processor_seconds:.1f}"
        lines.append(
            f"| {row.label} | {row.steps} | {row.steps_taken} | {seconds} | {ratios} | "
            f"{row.gigabytes_at_peak:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="run 3 steps of each, 6 with reuse")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written and kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "common_job.json")
    given = parser.parse_args()
    print(f"{machine()}, {given.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, given.threads)
        rows = []
        for job in JOBS:
            limit = 3 if given.quick else 8
            limit = 6 if given.quick and job.options.get("speed") in ("balanced", "fast") else limit
            rows.append(alone(measure, job, folder, given.threads, limit))
            print(f"{job.label}: {rows[-1].seconds:.1f} s", flush=True)
    print("\n" + table(rows))
    figures = {
        "machine": machine(),
        "threads": given.threads,
        "load_average": os.getloadavg(),
        "rows": [asdict(row) for row in rows],
    }
    given.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
