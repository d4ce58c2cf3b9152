"""Measure a guided UNet step and a whole call on a CUDA GPU: retouch, and diffusers plain and compiled.

The models are full-size Stable Diffusion 1.5 for inpainting at 512x512 and SDXL at 1024x1024, with seeded
random weights, 20 steps and guidance. Each contender is its own process and loads the same files. "Compiled"
follows diffusers' own guide: channels-last, UNet and decoder compiled with fullgraph. Reports medians, the
time of the first step and the first call together, and the peak of reserved GPU memory. The PSNR of a step is
against diffusers in float32, that of a picture against diffusers in the same dtype. If a contender fails, its
row says so and the others continue.

    python benchmarks/gpu_speed.py                           # both families, some minutes each
    python benchmarks/gpu_speed.py sd15 --quick
    python benchmarks/gpu_speed.py --device cpu --tiny       # tests the script; the figures mean nothing

It needs 2 GB of disk space for SD 1.5 and 7 GB for SDXL in the temporary folder, or in --folder, which is
kept; SDXL in float32 needs 12 GB of GPU memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import common_job  # noqa: E402
from full_size_check import FAMILIES, alone, build, machine  # noqa: E402

SIDES = {"sd15": 512, "sdxl": 1024}
SECOND_TEXT = {
    **common_job.TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
TRUTH = "diffusers, float32"
CONTENDERS = (
    TRUTH,
    "diffusers",
    "diffusers, compiled",
    "retouch, plain layers",
    "retouch, compiled",
    "retouch",
    "retouch, deep features reused",
)


@dataclass(frozen=True)
class Settings:
    """The settings that all contenders share."""

    folder: Path
    device: str
    dtype: str
    mode: str  # of torch.compile
    side: int
    steps: int
    repeats: int
    is_tiny: bool


@dataclass
class Measured:
    """Medians in milliseconds and seconds; None where a figure does not apply."""

    family: str
    contender: str
    step_ms: float | None = None
    step_psnr: float | None = None
    call_s: float | None = None
    picture_psnr: float | None = None
    warm_up_s: float | None = None
    reserved_gb: float | None = None
    failure: str | None = None


def prepare(family: str, folder: Path, is_tiny: bool) -> None:
    """Write the checkpoint, unless it exists."""
    if (folder / "model_index.json").is_file():
        return
    threads = torch.get_num_threads()
    if is_tiny:
        alone(_prepare_tiny, family, folder)
    elif family == "sd15":
        common_job.prepare(folder, threads)
    else:
        for part in FAMILIES["sdxl"].parts:
            alone(build, FAMILIES["sdxl"], part, folder, 0, threads)
        alone(_prepare_sdxl_text, folder)


def _prepare_tiny(family: str, folder: Path) -> None:
    from tiny_checkpoints import stable_diffusion
    from tiny_checkpoints_xl import stable_diffusion_xl

    stable_diffusion(folder, in_channels=9) if family == "sd15" else stable_diffusion_xl(folder)


def _prepare_sdxl_text(folder: Path) -> None:
    from diffusers import EulerDiscreteScheduler
    from tiny_checkpoints import write_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    first = CLIPTextModel(CLIPTextConfig(**common_job.TEXT))
    first.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    second = CLIPTextModelWithProjection(CLIPTextConfig(**SECOND_TEXT))
    second.to(torch.bfloat16).save_pretrained(folder / "text_encoder_2")
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", version=2)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    EulerDiscreteScheduler(**schedule, steps_offset=1).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def loaded(family: str, contender: str, settings: Settings) -> Any:
    """Load the pipeline onto the device."""
    dtype = torch.float32 if contender == TRUTH else getattr(torch, settings.dtype)
    if contender.startswith("retouch"):
        import retouch

        optimize = contender not in ("retouch, plain layers", "retouch, compiled")
        os.environ["RETOUCH_CUDA_GRAPHS"] = "1"
        pipeline: Any = retouch.AutoPipelineForInpainting.from_pretrained(
            settings.folder, dtype=dtype, optimize=optimize
        )
    else:
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        name = "StableDiffusionInpaintPipeline" if family == "sd15" else "StableDiffusionXLInpaintPipeline"
        pipeline = getattr(diffusers, name).from_pretrained(settings.folder, dtype=dtype)
    pipeline.to(settings.device)
    pipeline.set_progress_bar_config(disable=True)
    if contender.endswith("compiled"):
        how: dict[str, Any] = {"backend": "eager"} if settings.is_tiny else {"mode": settings.mode}
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, **how)
        if contender.startswith("diffusers"):
            pipeline.vae.decode = torch.compile(pipeline.vae.decode, **how)
    return pipeline


def step_of(pipeline: Any, contender: str, settings: Settings) -> Callable[[], torch.Tensor]:
    """Return a function that evaluates the UNet with guidance, as a pipeline's call does."""
    model, config = pipeline.unet, pipeline.unet.config
    draw = torch.Generator().manual_seed(0)
    dtype = torch.float32 if contender == TRUTH else getattr(torch, settings.dtype)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=draw).to(settings.device, dtype)

    latents = settings.side // 8
    sample = noise(config.in_channels, latents, latents)
    more: dict[str, Any] = {"encoder_hidden_states": noise(77, config.cross_attention_dim)}
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        ids = torch.tensor([[settings.side, settings.side, 0, 0, settings.side, settings.side]] * 2)
        ids = ids.to(settings.device, dtype)
        more["added_cond_kwargs"] = {"text_embeds": noise(width), "time_ids": ids}
    timestep = torch.tensor(501, device=settings.device)
    return lambda: model(sample, timestep, **more, return_dict=False)[0]


def measure(family: str, contender: str, settings: Settings) -> tuple[Measured, Any, Any]:
    """Return the figures of a contender, the result of its step and its picture."""
    if settings.is_tiny and settings.device == "cpu":
        _record_on_the_cpu()
    is_gpu = settings.device.startswith("cuda")
    wait = torch.cuda.synchronize if is_gpu else lambda: None
    pipeline = loaded(family, contender, settings)
    row, result, picture = Measured(family, contender), None, None

    def seconds(function: Callable[[], Any]) -> float:
        wait()
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    if contender != "retouch, deep features reused":
        step = step_of(pipeline, contender, settings)
        with torch.no_grad():
            row.warm_up_s = seconds(step)
            for _ in range(4):
                result = step().float().cpu()
            row.step_ms = 1000 * statistics.median(seconds(step) for _ in range(5 * settings.repeats))
    if contender != TRUTH:
        reuse = {"reuse_deep_features": 2} if contender.endswith("reused") else {}
        side, hole = settings.side, settings.side // 4
        photo = common_job.photo().resize((side, side))
        mask = Image.new("L", (side, side))
        mask.paste(255, (hole, hole, 3 * hole, 3 * hole))

        def call() -> None:
            nonlocal picture
            picture = pipeline(
                common_job.PROMPT,
                image=photo,
                mask_image=mask,
                height=side,
                width=side,
                num_inference_steps=settings.steps,
                guidance_scale=7.5,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
                **reuse,
            ).images[0]

        row.warm_up_s = (row.warm_up_s or 0) + seconds(call)
        call()
        row.call_s = statistics.median(seconds(call) for _ in range(settings.repeats))
    row.reserved_gb = torch.cuda.max_memory_reserved() / 1e9 if is_gpu else None
    if contender == "retouch" and (is_gpu or settings.is_tiny):
        from retouch.kernels.cuda import graphs

        mine = graphs._recordings[pipeline.unet]
        if mine.has_failed or not any(mine.kinds.values()):
            raise SystemExit("No graph was recorded, so there is nothing to measure; the log above says why.")
    return row, result if result is None else result.numpy(), picture


def _record_on_the_cpu() -> None:
    """Use the tests' stand-in for CUDA graphs, so that a test on a CPU runs the same code."""
    from recorded_ops import OpRecorder

    from retouch.kernels import optimization
    from retouch.kernels.cuda import graphs

    OpRecorder.made = []
    graphs.RECORDERS["cpu"] = OpRecorder
    optimization.GPUS.append("cpu")


def psnr(found: Any, wanted: Any, peak: float) -> float | None:
    error = float(((found.astype("float64") - wanted) ** 2).mean())
    return 10 * math.log10(peak**2 / error) if error else None


def compare(family: str, contenders: list[str], settings: Settings) -> list[Measured]:
    rows: list[Measured] = []
    truth = reference = None
    for contender in contenders:
        try:
            row, result, picture = alone(measure, family, contender, settings)
        except Exception as error:  # mostly out of memory
            row, result, picture = Measured(family, contender, failure=str(error)), None, None
        if contender == TRUTH:
            truth = result
        elif result is not None and truth is not None:
            row.step_psnr = psnr(result, truth, float(abs(truth).max()))
        if contender == "diffusers":
            reference = picture
        elif picture is not None and reference is not None:
            row.picture_psnr = psnr(picture, reference, 1.0)
        rows.append(row)
        print(described(row, rows), flush=True)
    return rows


HEAD = (
    "| | UNet step, ms | times as fast as diffusers | PSNR to float32, dB | whole call, s | times as fast "
    "| picture's PSNR to diffusers', dB | first time, s | GPU memory, GB |\n" + "|---" * 9 + "|"
)


def described(row: Measured, rows: list[Measured]) -> str:
    if row.failure is not None:
        return f"| {row.family}: {row.contender} | failed: {row.failure:.300} |".replace("\n", " ")
    base = next((other for other in rows if other.contender == "diffusers"), row)

    def shown(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def ratio(mine: float | None, theirs: float | None) -> str:
        return f"{theirs / mine:.2f}" if mine and theirs else ""

    cells = (
        f"{row.family}: {row.contender}",
        shown(row.step_ms, 1),
        ratio(row.step_ms, base.step_ms),
        shown(row.step_psnr, 1),
        shown(row.call_s, 2),
        ratio(row.call_s, base.call_s),
        shown(row.picture_psnr, 1),
        shown(row.warm_up_s, 1),
        shown(row.reserved_gb, 1),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="family", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument(
        "--mode", default="reduce-overhead", help="mode of torch.compile, for example max-autotune"
    )
    parser.add_argument("--quick", action="store_true", help="two repeats of each instead of seven")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to test the script")
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written and kept")
    parser.add_argument("--output", type=Path, help="a JSON file (default: results/gpu_speed.json)")
    given = parser.parse_args()
    families = given.families or list(SIDES)
    if unknown := [name for name in families if name not in SIDES]:
        parser.error(f"{', '.join(unknown)} is unknown. Known are {', '.join(SIDES)}.")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"This measures on a CUDA GPU, and torch {torch.__version__} finds none. Run it on a machine "
            "with one, its driver and a torch that was built for CUDA (nvidia-smi and torch.version.cuda say "
            "what is installed). To test the script itself: --device cpu --tiny."
        )
    if not given.device.startswith("cuda") and not given.tiny:
        parser.error(f"--device {given.device} goes with --tiny only: full-size networks are for a GPU.")
    is_rehearsal = not given.device.startswith("cuda")
    output = given.output or (None if given.tiny else ROOT / "benchmarks" / "results" / "gpu_speed.json")
    name = machine() if is_rehearsal else f"{torch.cuda.get_device_name(given.device)}, {machine()}"
    print(f"{name}\n\n{HEAD}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for family in families:
            folder = (given.folder or Path(scratch)) / (f"tiny-{family}" if given.tiny else family)
            folder.mkdir(parents=True, exist_ok=True)
            prepare(family, folder, given.tiny)
            settings = Settings(
                folder,
                given.device,
                "float32" if is_rehearsal else given.dtype,
                given.mode,
                side=64 if given.tiny else SIDES[family],
                steps=4 if given.tiny else 20,
                repeats=2 if given.quick else 7,
                is_tiny=given.tiny,
            )
            rows += compare(family, list(given.contenders), settings)
    if output is not None:
        figures = {
            "machine": name,
            "cuda": torch.version.cuda,
            "dtype": "float32" if is_rehearsal else given.dtype,
            "mode": given.mode,
            "load_average": os.getloadavg(),
            "rows": [asdict(row) for row in rows],
        }
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
