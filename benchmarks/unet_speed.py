"""Measure the networks alone: retouch optimized and plain, diffusers and OpenVINO, in one run.

The networks have full size and seeded random weights, saved once by diffusers and loaded by all. Each
contender is its own process and waits for its turn; every round runs all of them, so that other load on the
machine affects all equally. Reports medians, PSNR against diffusers in float32, the seconds for loading and
for the first result, and memory peaks.

    python benchmarks/unet_speed.py                         # all parts, some minutes each
    python benchmarks/unet_speed.py unet --quick            # one part, two rounds
    python benchmarks/unet_speed.py vae-decode unet --openvino /path/to/venv/bin/python

OpenVINO is included if --openvino names a Python that has it; its converted weights are kept in --folder (4
GB for each part, 15 GB for SDXL's). Use `--cpu-time --threads 1` on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "unet_speed.json"


@dataclass(frozen=True)
class Part:
    """A network to measure, with its inputs and precisions."""

    family: str  # of full_size_check.py
    network: str
    inputs: dict[str, tuple[int, ...]]
    precisions: tuple[str, ...] = ("bfloat16", "float32")
    rounds: int = 5
    with_plain: bool = True
    with_openvino: bool = True


_DECODE = {"family": "sd15-inpainting", "network": "vae"}
PARTS: dict[str, Part] = {
    "unet": Part("sd15-inpainting", "unet", {"sample": (2, 9, 64, 64), "text": (2, 77, 768)}),
    "vae-decode": Part(**_DECODE, inputs={"latents": (1, 4, 64, 64)}),
    "vae-encode": Part(**_DECODE, inputs={"pixels": (1, 3, 512, 512)}),
    "vae-decode-1024": Part(
        **_DECODE, inputs={"latents": (1, 4, 128, 128)}, rounds=2, with_plain=False, with_openvino=False
    ),
    "vae-decode-2048": Part(
        **_DECODE,
        inputs={"latents": (1, 4, 256, 256)},
        precisions=("bfloat16",),
        rounds=1,
        with_plain=False,
        with_openvino=False,
    ),
    "sdxl": Part(
        "sdxl",
        "unet",
        {"sample": (2, 4, 128, 128), "text": (2, 77, 2048), "pooled": (2, 1280), "sizes": (2, 6)},
        precisions=("bfloat16",),
        rounds=3,
        with_plain=False,
    ),
}


def inputs_of(part: Part) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    made = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in part.inputs.items()}
    if "sizes" in made:
        made["sizes"] = np.array([[1024, 1024, 0, 0, 1024, 1024]] * 2, dtype=np.float32)
    return made


def memory(key: str) -> float:
    """Return the peak (VmHWM) or current (VmRSS) memory of this process, in GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1e6
    return float("nan")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# Each contender is a function without arguments that returns the result.


def with_torch(part: Part, contender: str, precision: str, folder: Path) -> Callable[[], Any]:
    import torch
    from full_size_check import CLASSES

    library = "diffusers" if contender == "diffusers" else None
    name, home = CLASSES[part.network]  # type: ignore[index]
    dtype = getattr(torch, precision)
    module = __import__(library or home, fromlist=[name])
    model = getattr(module, name).from_pretrained(folder / part.network, torch_dtype=dtype)
    if contender == "optimized":
        from retouch.kernels import optimize

        optimize(model)
    function = called(model, part)
    given = [torch.from_numpy(value).to(dtype) for value in inputs_of(part).values()]

    def run() -> Any:
        with torch.inference_mode():
            return function(*given).float().numpy()

    return run


def called(model: Any, part: Part) -> Callable[..., Any]:
    """Return the model as a function of the part's inputs."""
    import torch

    timestep = torch.tensor(501)
    if "latents" in part.inputs:
        return lambda latents: model.decode(latents, return_dict=False)[0]
    if "pixels" in part.inputs:
        return lambda pixels: model.encode(pixels).latent_dist.mean
    if "sizes" not in part.inputs:
        return lambda sample, text: model(sample, timestep, text, return_dict=False)[0]
    return lambda sample, text, pooled, sizes: model(
        sample,
        timestep,
        text,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        return_dict=False,
    )[0]


def with_openvino(part: Part, precision: str, threads: int, folder: Path) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision == "float32":
        hints["INFERENCE_PRECISION_HINT"] = "f32"  # otherwise it chooses the fastest precision
    compiled = core.compile_model(converted(part, folder), "CPU", hints)
    given = list(inputs_of(part).values())
    return lambda: compiled(given)[0]


def converted(part: Part, folder: Path) -> Path:
    return folder / f"{'-'.join(part.inputs)}.xml"


def convert(part: Part, folder: Path, openvino_python: str) -> None:
    """Convert diffusers' network for OpenVINO; both libraries must be on the path."""
    packages = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    sys.path.append(subprocess.check_output([openvino_python, "-c", packages], text=True).strip())
    import diffusers
    import openvino
    import torch
    from full_size_check import CLASSES

    is_large = part.family == "sdxl"  # converting it in float32 would need 24 GB
    model = getattr(diffusers, CLASSES[part.network][0]).from_pretrained(  # type: ignore[index]
        folder / part.network, torch_dtype=torch.float16 if is_large else torch.float32
    )
    if is_large:
        from openvino.frontend.pytorch import patch_model

        getattr(patch_model, "__make_16bit_traceable")(model)  # as OpenVINO's own exporters do
    function = called(model, part)

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            return function(*given)

    given = tuple(torch.from_numpy(value) for value in inputs_of(part).values())
    with torch.no_grad():
        made = openvino.convert_model(
            Alone().eval(), example_input=given, input=[value.shape for value in inputs_of(part).values()]
        )
    openvino.save_model(made, converted(part, folder), compress_to_fp16=is_large)


def work(part: Part, contender: str, precision: str, threads: int, folder: Path, cpu_time: bool) -> None:
    """Run a contender's process: answer each input line with one line of JSON."""
    clock = time.process_time if cpu_time else time.perf_counter
    if contender != "openvino":
        import torch

        torch.set_num_threads(threads)
        __import__("diffusers" if contender == "diffusers" else "retouch.models.unet")
    before, start = memory("VmRSS"), clock()
    if contender == "openvino":
        run = with_openvino(part, precision, threads, folder)
    else:
        run = with_torch(part, contender, precision, folder)
    seconds, loaded, peak = clock() - start, memory("VmRSS"), memory("VmHWM")
    figures = {"load_seconds": seconds, "before_gb": before, "load_peak_gb": peak, "loaded_gb": loaded}
    print(json.dumps(figures), flush=True)
    with as_in_a_call(contender):
        for line in sys.stdin:
            forget_peak()
            start = clock()
            result = run()
            seconds = clock() - start
            if line.strip() != "run":
                np.save(line.strip(), result)
            print(json.dumps({"seconds": seconds, "peak_gb": memory("VmHWM")}), flush=True)


def as_in_a_call(contender: str) -> AbstractContextManager[None]:
    """Return the context in which a pipeline calls optimized models."""
    if contender != "optimized":
        return nullcontext()
    from retouch.kernels import keeping_memory

    return keeping_memory()


class Contender:
    """A contender's process, controlled by the comparing process."""

    def __init__(self, name: str, part_name: str, precision: str, args: argparse.Namespace) -> None:
        self.name, self.precision, self.seconds, self.peaks = name, precision, [], []
        python = args.openvino if name == "openvino" else sys.executable
        command = [python, str(Path(__file__).resolve()), part_name, "--folder", str(args.folder)]
        command += ["--work", name, "--precision", precision, "--threads", str(args.threads)]
        self.process = subprocess.Popen(
            [*command, *(["--cpu-time"] if args.cpu_time else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
        )
        self.figures: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print other lines
                return json.loads(line)
        raise SystemExit(f"{self.name} in {self.precision} ended without an answer; its output is above.")

    def run(self, save: Path | None = None) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{save or 'run'}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peaks.append(answer["peak_gb"])
        return float(answer["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(part_name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    part = PARTS[part_name]
    rounds = min(2, part.rounds) if args.quick else part.rounds
    truth: Any = None
    rows = []
    # float32 comes first: its first contender is the reference for PSNR.
    for precision in sorted(part.precisions, reverse=True):
        names = ["diffusers", *(["plain"] if part.with_plain else []), "optimized"]
        if args.openvino and part.with_openvino:
            names.append("openvino")
        contenders = [
            Contender(name, part_name, precision, args) for name in names if name in args.contenders
        ]
        for contender in contenders:
            place = args.folder / "result.npy"
            contender.figures["first_seconds"] = contender.run(place)
            result = np.load(place).astype(np.float64)
            truth = result if truth is None else truth
            error = np.square(result - truth).mean()
            contender.figures["psnr"] = 10 * np.log10(np.abs(truth).max() ** 2 / error) if error else None
        for _ in range(rounds):
            for contender in contenders:
                contender.seconds.append(contender.run())
        for contender in contenders:
            contender.close()
            median = statistics.median(contender.seconds)
            figures = {"part": part_name, "precision": precision, "contender": contender.name}
            figures |= {"seconds": median, "all_seconds": contender.seconds, "peak_gb": max(contender.peaks)}
            rows.append(figures | contender.figures)
            print(described(rows[-1], rows), flush=True)
    return rows


def described(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    reference = next(
        (
            other
            for other in rows
            if (other["contender"], other["precision"]) == ("diffusers", row["precision"])
        ),
        row,
    )
    psnr = "        -" if row["psnr"] is None else f"{row['psnr']:6.1f} dB"
    return (
        f"{row['part']:<16} {row['precision']:<9} {row['contender']:<10} {row['seconds']:7.2f} s "
        f"({reference['seconds'] / row['seconds']:4.2f}x)  first {row['first_seconds']:6.2f} s  {psnr}  "
        f"load {row['load_seconds']:5.1f} s, peak {row['load_peak_gb']:5.2f} GB, "
        f"then {row['loaded_gb']:5.2f}; at work {row['peak_gb']:5.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "retouch-unet-speed")
    parser.add_argument("--openvino", help="a Python that has OpenVINO")
    parser.add_argument("--contenders", nargs="*", default=["diffusers", "plain", "optimized", "openvino"])
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work == "convert":
        return convert(PARTS[args.parts[0]], args.folder, args.openvino)
    if args.work:
        part = PARTS[args.parts[0]]
        place = args.folder / part.family
        return work(part, args.work, args.precision, args.threads, place, args.cpu_time)
    rows = []
    for name in args.parts or PARTS:
        make_ready(name, args)
        rows += compare(name, args)
        write(rows, args)


def make_ready(name: str, args: argparse.Namespace) -> None:
    """Write the weights and OpenVINO's version of them, unless they exist."""
    from full_size_check import FAMILIES, alone, build

    part = PARTS[name]
    place = args.folder / part.family
    place.mkdir(parents=True, exist_ok=True)
    if not (place / part.network / "config.json").exists():
        alone(build, FAMILIES[part.family], part.network, place, 0, args.threads)
    if args.openvino and part.with_openvino and not converted(part, place).exists():
        command = [sys.executable, __file__, name, "--folder", str(place), "--work", "convert"]
        subprocess.run([*command, "--openvino", args.openvino], check=True)


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    from full_size_check import machine

    known = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    done = {row["part"] for row in rows}
    figures = {
        "machine": machine(),
        "threads": args.threads,
        "clock": "cpu time" if args.cpu_time else "wall",
        "load_average": os.getloadavg(),  # above the number of threads, the seconds are unreliable
        "python": platform.python_version(),
        "rows": [row for row in known if row["part"] not in done] + rows,
    }
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
