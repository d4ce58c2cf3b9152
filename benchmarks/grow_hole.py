"""Measure the growing of Kandinsky's mask by the reference's loop over pixels and by our single operation.

Both get the same masks and must give the same result. Pipelines grow masks at the latents' size, an eighth of
the picture's.

    python benchmarks/grow_hole.py --sides 128 1024 --output result.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask
from full_size_check import machine
from torch import Tensor

from retouch.families.kandinsky22 import grow


@dataclass(frozen=True)
class Timed:
    """The seconds for one mask; ours are the minimum of several runs."""

    side: int
    share_of_hole: float
    reference_seconds: float
    our_seconds: float

    @property
    def times_as_fast(self) -> float:
        return self.reference_seconds / self.our_seconds


def hole(side: int, share: float, seed: int) -> Tensor:
    """Return a square mask with random discs until this share of it is white."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mask = torch.zeros(1, 1, side, side)
    while mask.mean() < share:
        y, x = torch.rand(2, generator=draw) * side
        radius = side * (0.03 + 0.1 * torch.rand((), generator=draw))
        mask[0, 0][(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
    return mask


def measure(side: int, share: float, tries: int = 20) -> Timed:
    repaint = hole(side, share, seed=side)
    ours = []
    for _ in range(tries):
        start = time.perf_counter()
        grown = grow(repaint)
        ours.append(time.perf_counter() - start)
    keep = 1 - repaint  # the reference's mask means 1 = keep
    start = time.perf_counter()
    theirs = prepare_mask(keep.clone())
    seconds = time.perf_counter() - start
    if not torch.equal(grown, 1 - theirs):
        sys.exit(f"At {side} x {side} the two differ.")
    return Timed(side, float(repaint.mean()), seconds, min(ours))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--share", type=float, default=0.25, help="share of the mask that is white")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{machine()}, {args.threads} threads", flush=True)
    results = []
    for side in args.sides:
        results.append(measure(side, args.share))
        print(
            f"{side} x {side}: reference {results[-1].reference_seconds:.3f} s, "
            f"ours {1000 * results[-1].our_seconds:.3f} ms, {results[-1].times_as_fast:.0f} times as fast",
            flush=True,
        )
    if args.output:
        figures = {
            "machine": machine(),
            "threads": args.threads,
            "load_average": os.getloadavg(),
            "masks": [asdict(result) for result in results],
        }
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
