"""Measure a guided step with the common part of both halves of the guidance computed once, and twice.

The common part is everything in a UNet before its first attention to the text. Measures the optimized UNet of
the built-in checkpoint (or --model) and, with --large, SD 1.5's full-size inpainting UNet at 512x512 with
seeded random weights, in bfloat16 on one thread, with all levels and with deep features reused. Reports
medians of CPU seconds, measured in turns, and the median of the ratios of pairs. Also measures the layers
whose results could be kept for a whole call: those that see only the text, or only the time.

    python benchmarks/sides_of_guidance.py [--quick] [--large] [--output result.json]
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from report import asked, circumstances, large_unet, print_table, write

import retouch

WAYS = {"once": 2, "twice": 1}  # `copies`: how many equal copies of the latents the batch has
SIDES = {"built-in": 16, "SD 1.5": 64}  # of the latents


@dataclass(frozen=True)
class Row:
    unet: str
    step: str
    once: float  # seconds
    twice: float
    ratio: float
    worst_difference: float  # of the prediction, relative to its largest value
    text_alone: float  # seconds in layers that see only the text
    time_alone: float


def alone(unet: Any, suffixes: tuple[str, ...], given: torch.Tensor) -> float:
    """Return the seconds of some layers by themselves, with their weights not in the CPU cache."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith(suffixes)]
    flush = torch.empty(2**26, dtype=torch.uint8)
    taken = []
    for _ in range(5):
        flush.fill_(1)
        start = time.process_time()
        for layer in layers:
            layer(given)
        taken.append(time.process_time() - start)
    return statistics.median(taken)


@torch.inference_mode()
def compare(name: str, unet: Any, rounds: int) -> list[Row]:
    torch.manual_seed(1)
    config, side = unet.config, SIDES[name]
    sample = torch.randn(1, config.in_channels, side, side).to(unet.dtype).repeat(2, 1, 1, 1)
    text = torch.randn(2, 77, config.cross_attention_dim).to(unet.dtype)
    given = (sample, torch.tensor(501), text)
    temb = torch.randn(1, 4 * config.block_out_channels[0]).to(unet.dtype)
    deep = unet(*given, return_deep=True).deep
    kept = alone(unet, ("attn2.to_k", "attn2.to_v"), text), alone(unet, ("time_emb_proj",), temb)
    rows = []
    for step, options in (("all levels", {}), ("deep features reused", {"deep": deep})):
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        found: dict[str, torch.Tensor] = {}
        for turn in range(rounds + 1):
            for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                found[way] = unet(*given, copies=WAYS[way], **options).sample
                taken[way].append(time.process_time() - start)
        warm = {way: seconds[1:] for way, seconds in taken.items()}
        once, twice = map(statistics.median, warm.values())
        ratio = statistics.median(a / b for a, b in zip(warm["once"], warm["twice"], strict=True))
        difference = (found["once"] - found["twice"]).abs().max() / found["twice"].abs().max()
        rows.append(Row(name, step, once, twice, ratio, float(difference), *kept))
    return rows


def main() -> None:
    given = asked(
        __doc__, "sides_of_guidance", quick="three rounds", large="SD 1.5's UNet as well: 4 GB of memory"
    )
    torch.set_num_threads(1)
    figures = circumstances(given)
    pipeline = retouch.load(given.model, device="cpu", dtype="bfloat16", progress=False).pipeline
    rows = compare("built-in", pipeline.unet, 30 if given.quick else 200)
    if given.large:
        rows += compare("SD 1.5", large_unet(), 3 if given.quick else 10)
    head = ("UNet", "step", "once, s", "twice, s", "ratio", "difference", "text alone, s", "time alone, s")
    print_table(
        head,
        (
            (row.unet, row.step, f"{row.once:.4f}", f"{row.twice:.4f}", f"{row.ratio:.3f}",
             f"{row.worst_difference:.0e}", f"{row.text_alone:.4f}", f"{row.time_alone:.4f}")
            for row in rows
        ),
    )  # fmt: skip
    write(figures, rows, given)


if __name__ == "__main__":
    main()
