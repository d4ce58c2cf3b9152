"""Measures of how well a hole in a plain background is filled, and OpenCV's two methods."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.perceptual import Lpips
from retouch.images.fill import fill_hole
from retouch.images.seam import seam_score
from training.sheets import to_pixels


def classical(pictures: np.ndarray, holes: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for radius in (5, 3):
        for label, method in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
            found[f"{label}, radius {radius}"] = np.stack(
                [
                    cv2.inpaint(np.ascontiguousarray(picture), hole.astype(np.uint8), radius, method)
                    for picture, hole in zip(pictures, holes, strict=True)
                ]
            )
    found["smooth continuation"] = np.stack(
        [fill_hole(picture, hole, "blur") for picture, hole in zip(pictures, holes, strict=True)]
    )
    return found


class Measure:
    """Figures of filled holes: LPIPS if it is available, PSNR, seam and detail."""

    def __init__(self, lpips: Lpips | None = None, vgg: Lpips | None = None):
        self.lpips, self.vgg = lpips, vgg

    def __call__(
        self, truth: np.ndarray, holes: np.ndarray, results: dict[str, np.ndarray], best: str | None = None
    ) -> dict[str, dict[str, float]]:
        """Return the means over pictures for each method; for `best` also how often it beats the others."""
        found, distances = {}, {}
        for label, result in results.items():
            figures = {
                "psnr_in_hole": round(_psnr_in_hole(truth, result, holes), 2),
                "detail_kept": round(_detail(result, holes) / _detail(truth, holes), 3),
                "seam": round(_seam(result, holes), 3),
            }
            if self.lpips is not None:
                distances[label] = _distances(self.lpips, truth, result)
                figures["lpips"] = round(distances[label].mean().item(), 4)
            if self.vgg is not None and best is not None:
                part = slice(0, 96)
                figures["lpips_vgg"] = round(_distances(self.vgg, truth[part], result[part]).mean().item(), 4)
            found[label] = figures
        if best is not None and self.lpips is not None:
            for label in results:
                gain = distances[label] - distances[best]
                found[label]["best_is_nearer"] = round((gain > 0).float().mean().item(), 3)
                found[label]["best_gains"] = round(gain.mean().item(), 4)
                found[label]["best_gains_error"] = round((gain.std() / len(gain) ** 0.5).item(), 4)
        return found


def _distances(lpips: Lpips, first: np.ndarray, second: np.ndarray) -> Tensor:
    pairs = zip(to_pixels(first).split(32), to_pixels(second).split(32), strict=True)
    return torch.cat([lpips(*pair) for pair in pairs])


def _psnr_in_hole(truth: np.ndarray, result: np.ndarray, holes: np.ndarray) -> float:
    errors = [
        np.square(a[hole].astype(np.float32) - b[hole]).mean()
        for a, b, hole in zip(truth, result, holes, strict=True)
    ]
    return float(np.mean([10 * np.log10(255**2 / max(error, 0.1)) for error in errors]))


def _detail(pictures: np.ndarray, holes: np.ndarray) -> float:
    """Return the mean gradient in the middle of the holes; smeared fills have a low one."""
    found = []
    for picture, hole in zip(pictures, holes, strict=True):
        grey = picture.astype(np.float32).mean(-1)
        slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        inner = cv2.erode(hole.astype(np.uint8), np.ones((7, 7))) > 0
        found.append(slope[inner if inner.any() else hole].mean())
    return float(np.mean(found))


def _seam(pictures: np.ndarray, holes: np.ndarray) -> float:
    found = [
        seam_score(Image.fromarray(picture), Image.fromarray(255 * hole.astype(np.uint8)))
        for picture, hole in zip(pictures, holes, strict=True)
    ]
    return float(np.nanmean(found))
