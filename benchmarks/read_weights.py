"""Measure how weights are read: our reader against two ways of the safetensors library.

A file of float32 weights is read into memory as float32 and as bfloat16. Each run is its own process, and the
three ways take turns. All values are summed, as a first call would touch them. Measured are the time, the
peak of the process's memory, and the memory that stays when the file is read.

    python benchmarks/read_weights.py [--gigabytes 1.7] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "retouch": """
from retouch.checkpoints.tensors import read_tensors
state = dict(read_tensors(path, dtype=dtype))
""",
    "safe_open": """
from safetensors import safe_open
with safe_open(path, framework="pt") as file:
    state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}
""",
    "load_file": """
from safetensors.torch import load_file
state = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
""",
}
# The peak before reading is that of the imports; Linux resets it by a 5 in this file.
AROUND = """
import json, sys, time
from pathlib import Path
import torch
import retouch.checkpoints.tensors, safetensors.torch
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
torch.ones(1024).to(dtype).float().sum()

def mebibytes(name):
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields[name].split()[0]) / 1024

before = mebibytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
start = time.perf_counter()
{read}
total = sum(float(tensor.sum()) for tensor in state.values())
seconds = time.perf_counter() - start
peak, after = mebibytes("VmHWM") - before, mebibytes("VmRSS") - before
print(json.dumps({{"seconds": seconds, "peak": peak, "after": after}}))
"""
RESULT = Path(__file__).parent / "results/read_weights.json"


def write_file(path: Path, gigabytes: float) -> None:
    """Write layers of the shapes that a UNet has, until the file is of that size."""
    import torch
    from safetensors.torch import save_file

    shapes = [(320, 320, 3, 3), (640, 640), (1280, 1280, 3, 3), (1280, 768), (5120, 1280), (320,)]
    state: dict[str, torch.Tensor] = {}
    size = 0
    while size < gigabytes * 1e9:
        tensor = torch.randn(shapes[len(state) % len(shapes)])
        state[f"layers.{len(state)}.weight"] = tensor
        size += tensor.nbytes
    save_file(state, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gigabytes", type=float, default=1.7, help="size of the file, as half a UNet of SD 1.5"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="measured runs of each, after one that warms the cache"
    )
    arguments = parser.parse_args()

    cases = [(way, dtype) for dtype in ("float32", "bfloat16") for way in WAYS]
    measured: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        write_file(path, arguments.gigabytes)
        size = path.stat().st_size / 2**20
        for run in range(arguments.runs + 1):
            for way, dtype in cases:
                code = AROUND.format(read=WAYS[way])
                command = [sys.executable, "-c", code, str(path), dtype]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                if run:
                    measured[way, dtype].append(json.loads(answer.stdout))
            print(f"round {run} of {arguments.runs} is done", file=sys.stderr)

    rows = []
    print(f"a float32 file of {size:.0f} MiB; median of {arguments.runs} runs")
    for (way, dtype), values in measured.items():
        ours = measured["retouch", dtype]
        row = {
            "way": way,
            "dtype": dtype,
            "seconds": round(statistics.median(value["seconds"] for value in values), 3),
            "peak MiB": round(statistics.median(value["peak"] for value in values)),
            "MiB afterwards": round(statistics.median(value["after"] for value in values)),
            "time against ours": round(
                statistics.median(
                    value["seconds"] / our["seconds"] for value, our in zip(values, ours, strict=True)
                ),
                2,
            ),
        }
        rows.append(row)
        print("  " + "   ".join(f"{name} {value}" for name, value in row.items()))
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    machine = names[0].split(":")[1].strip() if names else platform.machine()
    RESULT.write_text(
        json.dumps({"machine": machine, "file MiB": round(size), "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
