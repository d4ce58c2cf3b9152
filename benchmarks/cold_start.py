"""Measure the time from starting Python to the end of the first denoising step, for retouch and diffusers.

Each run is its own process, and the two libraries take turns. The checkpoint is tiny, so nearly all of the
time is importing and loading. Also measures `import retouch` alone.

    python benchmarks/cold_start.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FIRST_STEP = """
import sys, numpy as np
from PIL import Image
from {library} import AutoPipelineForInpainting
pipeline = AutoPipelineForInpainting.from_pretrained(sys.argv[1], safety_checker=None)
photo, mask = Image.new("RGB", (64, 64), "teal"), Image.new("L", (64, 64), 255)
pipeline("a cat", image=photo, mask_image=mask, height=64, width=64, num_inference_steps=1)
"""
CODES = {
    "import retouch": "import retouch",
    "import torch": "import torch",
    "retouch, first step": FIRST_STEP.format(library="retouch"),
    "diffusers, first step": FIRST_STEP.format(library="diffusers"),
}


def seconds(code: str, folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=7, help="measured runs of each, after one that warms the cache"
    )
    runs = parser.parse_args().runs
    from tiny_checkpoints import stable_diffusion

    with tempfile.TemporaryDirectory() as folder:
        stable_diffusion(folder, in_channels=9)
        times: dict[str, list[float]] = {name: [] for name in CODES}
        for run in range(runs + 1):
            for name, code in CODES.items():
                taken = seconds(code, Path(folder))
                if run:
                    times[name].append(taken)
    empty = statistics.median(seconds("pass", Path()) for _ in range(runs))
    print(f"median of {runs} runs, seconds (an empty Python: {empty:.2f})")
    for name, values in times.items():
        print(f"  {name:24} {statistics.median(values):6.2f}   {min(values):.2f} to {max(values):.2f}")
    ours, theirs = times["retouch, first step"], times["diffusers, first step"]
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    print(f"  retouch reaches its first step {statistics.median(ratios):.2f} times as fast as diffusers")


if __name__ == "__main__":
    main()
