"""Measure attention only: our kernel at each level that the processor has, torch's, and torch's in chunks.

The sizes are those of the UNets of Stable Diffusion 1.5 at 512x512 and XL at 1024x1024, with guidance. All
are measured in turns, so that other load on the machine affects all equally. Reports medians, and the largest
difference from attention in float64. Writes results/attention.json.

    python benchmarks/attention.py [--quick] [--threads 2] [--cpu-time] [--levels avx512,avx2]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from retouch.kernels.cpu.attention import _in_chunks, attention_at, levels

SHAPES = {  # batch, heads, queries, keys, head size
    "SD 1.5, 64x64, itself": (2, 8, 4096, 4096, 40),
    "SD 1.5, 32x32, itself": (2, 8, 1024, 1024, 80),
    "SD 1.5, 16x16, itself": (2, 8, 256, 256, 160),
    "SD 1.5, 64x64, text": (2, 8, 4096, 77, 40),
    "SD 1.5, 32x32, text": (2, 8, 1024, 77, 80),
    "SDXL, 64x64, itself": (2, 10, 4096, 4096, 64),
    "SDXL, 32x32, itself": (2, 20, 1024, 1024, 64),
    "VAE, 64x64, itself": (1, 1, 4096, 4096, 512),
}
TORCH = "torch"
CHUNKS = "torch in chunks"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def measured(
    shape: tuple[int, ...], dtype: torch.dtype, chosen: list[str], runs: int, clock: Callable[[], float]
) -> dict:
    """Return the milliseconds and the largest error of each method."""
    batch, heads, queries, keys, dim = shape
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(batch, tokens, heads, dim).to(dtype).transpose(1, 2) for tokens in (queries, keys, keys)
    )
    ways: dict[str, Callable[[], Tensor]] = {
        level: lambda level=level: attention_at(level, query, key, value) for level in chosen
    }
    if dtype is torch.float32 and "avx512" in ways:
        ways.pop("avx512bf16", None)  # the same kernel
    ways[TORCH] = lambda: F.scaled_dot_product_attention(query, key, value)
    if dtype is torch.bfloat16:
        ways[CHUNKS] = lambda: _in_chunks(query, key, value, dim**-0.5)

    first = slice(0, 1)
    exact = F.scaled_dot_product_attention(*(part[first, first].double() for part in (query, key, value)))
    errors = {name: (way()[first, first].double() - exact).abs().max().item() for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = clock()
            way()
            times[name].append(1000 * (clock() - start))
    return {
        name: {"milliseconds": statistics.median(values), "error": errors[name]}
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three runs, with the sizes of SD 1.5 only")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--levels", type=lambda names: names.split(","), default=list(levels()))
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, for a busy machine; use with --threads 1"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = 3 if arguments.quick else arguments.runs
    shapes = {name: shape for name, shape in SHAPES.items() if not arguments.quick or "SDXL" not in name}
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    print(f"{processor()}, {arguments.threads} threads, torch {torch.__version__}, median of {runs}")
    results: dict[str, dict] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in shapes.items():
            found = results[f"{name}, {str(dtype).removeprefix('torch.')}"] = measured(
                shape, dtype, arguments.levels, runs, clock
            )
            print(f"{name} {shape}, {str(dtype).removeprefix('torch.')}")
            for way, figures in found.items():
                ratio = found[TORCH]["milliseconds"] / figures["milliseconds"]
                print(
                    f"    {way:16} {figures['milliseconds']:9.2f} ms   {ratio:5.2f} times torch's speed   "
                    f"error {figures['error']:.1e}"
                )
    report = {
        "processor": processor(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "clock": "processor time" if arguments.cpu_time else "time",
        "runs": runs,
        "results": results,
    }
    path = Path(__file__).parent / "results" / "attention.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
