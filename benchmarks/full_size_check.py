"""Compare full-size networks with the reference's: seeded random weights, saved by it and loaded strictly by
us.

Each network is built and saved by the reference library (a development dependency). Then the reference and
retouch each load and run it once, in separate processes, so that each has its own memory peak. Exits with 1
if the outputs differ by more than rounding.

    python benchmarks/full_size_check.py --family sd15-inpainting --threads 2 --output result.json

It needs disk space for the weights (4 GB for SD 1.5, 5 GB for SDXL in bfloat16, 1.5 GB for a ControlNet, 10
GB for Kandinsky) in the temporary folder, or in --folder, which is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from published_configs import AUTOENCODERS, CONTROLNETS, MOVQS, PRIORS, UNETS

Part = Literal["unet", "vae", "controlnet", "prior", "movq"]
Library = Literal["reference", "ours"]

# Part -> class name, and our module.
CLASSES: dict[Part, tuple[str, str]] = {
    "unet": ("UNet2DConditionModel", "retouch.models.unet"),
    "vae": ("AutoencoderKL", "retouch.models.autoencoder"),
    "controlnet": ("ControlNetModel", "retouch.models.controlnet"),
    "prior": ("PriorTransformer", "retouch.models.prior_transformer"),
    "movq": ("VQModel", "retouch.models.movq"),
}


@dataclass(frozen=True)
class Family:
    """A published checkpoint: its config.json files (empty: no such part), and the inputs of one run."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    dtype: torch.dtype
    latent_side: int
    text_shape: tuple[int, int]
    controlnet: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    movq: dict[str, Any] = field(default_factory=dict)
    pooled_width: int = 0  # of SDXL's second text encoder
    tolerance: float = 1e-4  # of the largest difference, relative to the largest value

    @property
    def parts(self) -> list[Part]:
        return [part for part in CLASSES if getattr(self, part)]

    def inputs(self, part: Part, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator).to(self.dtype)

        side = self.latent_side
        if part == "vae":
            return {"z": draw(self.vae["latent_channels"], side, side)}
        if part == "movq":
            return {"h": draw(self.movq["latent_channels"], side, side), "force_not_quantize": True}
        if part == "prior":
            return {
                "hidden_states": draw(self.text_shape[1]),
                "timestep": torch.tensor(501),
                "proj_embedding": draw(self.text_shape[1]),
                "encoder_hidden_states": draw(*self.text_shape),
                "attention_mask": torch.arange(self.text_shape[0])[None] < 20,
            }
        inputs: dict[str, Any] = {
            "sample": draw(getattr(self, part)["in_channels"], side, side),
            "timestep": torch.tensor(501),
            "encoder_hidden_states": draw(*self.text_shape),
        }
        if getattr(self, part).get("encoder_hid_dim_type") == "image_proj":
            inputs["encoder_hidden_states"] = None
            inputs["added_cond_kwargs"] = {"image_embeds": draw(self.unet["encoder_hid_dim"])}
        if part == "controlnet":
            inputs["controlnet_cond"] = draw(3, 8 * side, 8 * side)
        if self.pooled_width:
            sizes = self.unet["projection_class_embeddings_input_dim"] - self.pooled_width
            count = sizes // self.unet["addition_time_embed_dim"]
            time_ids = torch.tensor([[1024, 1024, 0, 0, 1024, 1024][:count]], dtype=self.dtype)
            inputs["added_cond_kwargs"] = {"text_embeds": draw(self.pooled_width), "time_ids": time_ids}
        return inputs


_XL: dict[str, Any] = {
    "vae": AUTOENCODERS["SDXL"],
    "dtype": torch.bfloat16,
    "latent_side": 32,
    "pooled_width": 1280,
    "tolerance": 0.02,
}
FAMILIES = {
    "sd15-inpainting": Family(
        UNETS["SD 1.5 inpainting"], AUTOENCODERS["SD"], torch.float32, latent_side=64, text_shape=(77, 768)
    ),
    "controlnet-sd15-inpaint": Family(
        unet={},
        vae={},
        controlnet=CONTROLNETS["control_v11p_sd15_inpaint"],
        dtype=torch.float32,
        latent_side=64,
        text_shape=(77, 768),
    ),
    "kandinsky22": Family(
        UNETS["Kandinsky 2.2 decoder for inpainting"],
        vae={},
        movq=MOVQS["Kandinsky 2.2"],
        prior=PRIORS["Kandinsky 2.2"],
        dtype=torch.float32,
        latent_side=64,
        text_shape=(77, 1280),
    ),
    "sdxl": Family(UNETS["SDXL base"], text_shape=(77, 2048), **_XL),
    "sdxl-inpainting": Family(UNETS["SDXL inpainting"], text_shape=(77, 2048), **_XL),
    "sdxl-refiner": Family(UNETS["SDXL refiner"], text_shape=(77, 1280), **_XL),
}


@dataclass(frozen=True)
class Measured:
    """The figures of one network in one process."""

    parameters: int
    load_seconds: float
    run_seconds: float
    gigabytes_before: float  # the interpreter and its libraries
    gigabytes_after_load: float
    gigabytes_at_peak: float


@dataclass(frozen=True)
class Comparison:
    part: Part
    reference: Measured
    ours: Measured
    max_difference: float
    relative_difference: float
    psnr: float | None  # dB, against the largest value; None when all values are equal
    is_close: bool


def build(family: Family, part: Part, folder: Path, seed: int, threads: int) -> None:
    """Let the reference save a network with random values everywhere, so that skipped layers show."""
    import diffusers

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(family.dtype)  # SDXL's UNet would take 10 GB in float32
    try:
        model = getattr(diffusers, CLASSES[part][0]).from_config(getattr(family, part))
    finally:
        torch.set_default_dtype(usual)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre, spread = (0.0, 0.1) if name.endswith("bias") else (1.0, 0.2)
                parameter.normal_(centre, spread)
            elif not parameter.any():
                parameter.normal_(0.0, 0.05)
    model.to(family.dtype).save_pretrained(folder / part)


def measure(family: Family, part: Part, library: Library, folder: Path, seed: int, threads: int) -> Measured:
    """Load a saved network and run it once; the output goes to a file."""
    torch.set_num_threads(threads)
    name, home = CLASSES[part]
    kind = getattr(importlib.import_module("diffusers" if library == "reference" else home), name)
    # Reads the files once, so that both libraries find them in the system's cache.
    for file in (folder / part).iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    before = peak_gigabytes()
    start = time.perf_counter()
    model = kind.from_pretrained(folder / part, torch_dtype=family.dtype)
    loaded = time.perf_counter()
    after_load = peak_gigabytes()
    run = model.decode if part in ("vae", "movq") else model
    with torch.inference_mode():
        result = run(**family.inputs(part, seed), return_dict=False)
    if part == "controlnet":
        down, mid = result
        result = [torch.cat([residual.flatten() for residual in [*down, mid]])]
    finished = time.perf_counter()
    torch.save(result[0], folder / f"{part}-{library}.pt")
    return Measured(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        load_seconds=loaded - start,
        run_seconds=finished - loaded,
        gigabytes_before=before,
        gigabytes_after_load=after_load,
        gigabytes_at_peak=peak_gigabytes(),
    )


def peak_gigabytes() -> float:
    """Return the peak memory of this process, including mapped files."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def compare(family: Family, part: Part, reference: Measured, ours: Measured, folder: Path) -> Comparison:
    results = [torch.load(folder / f"{part}-{library}.pt") for library in ("reference", "ours")]
    theirs, mine = (result.double() for result in results)
    peak = theirs.abs().max().item()
    difference = (theirs - mine).abs().max().item()
    error = (theirs - mine).square().mean().item()
    is_sound = (
        bool(mine.isfinite().all()) and mine.shape == theirs.shape and theirs.std().item() > 1e-3 * peak
    )
    return Comparison(
        part=part,
        reference=reference,
        ours=ours,
        max_difference=difference,
        relative_difference=difference / peak,
        psnr=10 * math.log10(peak**2 / error) if error else None,
        is_close=is_sound and difference <= family.tolerance * peak,
    )


def alone(function: Any, *args: Any) -> Any:
    """Call a function in a new process, which releases its memory when it ends."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def check(family: Family, folder: Path, seed: int, threads: int) -> list[Comparison]:
    comparisons = []
    for part in family.parts:
        alone(build, family, part, folder, seed, threads)
        reference, ours = (
            alone(measure, family, part, library, folder, seed, threads) for library in ("reference", "ours")
        )
        comparisons.append(compare(family, part, reference, ours, folder))
        print(describe(comparisons[-1]), flush=True)
    return comparisons


def describe(result: Comparison) -> str:
    psnr = "all values equal" if result.psnr is None else f"PSNR {result.psnr:.1f} dB"
    lines = [
        f"{result.part}: {result.ours.parameters / 1e6:.1f} M parameters; "
        f"max difference {result.max_difference:.2e} (relative {result.relative_difference:.2e}), "
        f"{psnr}: {'ok' if result.is_close else 'NOT CLOSE'}"
    ]
    for name, seen in (("reference", result.reference), ("ours", result.ours)):
        lines.append(
            f"  {name:<9}  load {seen.load_seconds:6.2f} s  run {seen.run_seconds:6.2f} s  memory "
            f"{seen.gigabytes_before:.2f} GB before, {seen.gigabytes_after_load:.2f} after loading, "
            f"{seen.gigabytes_at_peak:.2f} at peak"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="sd15-inpainting")
    parser.add_argument(
        "--folder", type=Path, help="where the weights are written and kept (default: a temporary folder)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    print(f"{args.family} on {machine()}, {args.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        comparisons = check(FAMILIES[args.family], folder, args.seed, args.threads)
    if args.output:
        figures = {
            "family": args.family,
            "machine": machine(),
            "threads": args.threads,
            "load_average": os.getloadavg(),  # above the number of threads, the seconds are unreliable
            "parts": [asdict(comparison) for comparison in comparisons],
        }
        args.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(comparison.is_close for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
