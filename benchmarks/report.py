"""Common parts of the benchmarks on a trained checkpoint: options, inputs and reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from retouch.kernels import optimize
from retouch.models.unet import UNet2DConditionModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from full_size_check import machine  # noqa: E402
from published_configs import UNETS  # noqa: E402

# Names that the built-in checkpoint knows, and an empty prompt.
PROMPTS = ("a sailboat", "a red apple", "a cat", "a car", "a tree", "a mushroom", "a rocket", "")


def asked(description: str | None, name: str, *, quick: str, large: str) -> argparse.Namespace:
    """Parse the command line; `quick` and `large` are the help texts of these options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--large", action="store_true", help=large)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    return parser.parse_args()


def circumstances(given: argparse.Namespace) -> dict[str, Any]:
    """Print the machine, and return the facts that the figures depend on."""
    print(f"{machine()}, one thread")
    return {"machine": machine(), "load_average": os.getloadavg(), "model": Path(given.model).name}


def large_unet() -> UNet2DConditionModel:
    """Make SD 1.5's full-size inpainting UNet in bfloat16 with seeded random weights."""
    torch.manual_seed(0)
    return optimize(UNet2DConditionModel.from_config(UNETS["SD 1.5 inpainting"]).to(torch.bfloat16).eval())


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, each row as soon as it is measured."""
    print("", f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def write(figures: dict[str, Any], rows: Iterable[Any], given: argparse.Namespace) -> None:
    given.output.write_text(json.dumps(figures | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")
