"""Measure how things painted by the built-in checkpoint sit in a photo: with their matte, and without.

24 prompts are painted into boxes on backgrounds of real photos. The ring is what the box shows beside the
thing (the matte, a few pixels wider). The untouched photo is its truth. Reported are the ring's detail (mean
gradient, over that of the same pixels of the photo) and its LPIPS, for both ways. For LPIPS, the thing's
pixels are set to the photo's in both pictures. Sheets to look at: photo, without, with.

    python -m benchmarks.things --photos FOLDER --sheets FOLDER [--cache FOLDER]

The photos are the files that CASES names: of the Kodak set, and four others with people or a dog on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

import retouch
from benchmarks.perceptual import Lpips, load
from retouch.editing.laying import Grounds
from retouch.images.mask_reading import read_photo_mask

RESULTS = Path(__file__).parent / "results" / "things.json"
Box = tuple[int, int, int, int]
CASES: list[tuple[str, Box, str]] = [
    ("truth/k02", (60, 300, 220, 460), "sunflower"),
    ("truth/k02", (330, 330, 480, 480), "alarm clock"),
    ("truth/k06", (500, 330, 660, 470), "duck"),
    ("truth/k06", (30, 290, 190, 430), "whale"),
    ("truth/k09", (30, 40, 200, 210), "balloon"),
    ("truth/k09", (180, 640, 310, 755), "fish"),
    ("truth/k11", (60, 370, 210, 500), "turtle"),
    ("truth/k12", (560, 330, 720, 490), "crab"),
    ("truth/k12", (40, 350, 200, 490), "soccer ball"),
    ("truth/k14", (590, 80, 730, 220), "octopus"),
    ("truth/k15", (20, 60, 190, 230), "butterfly"),
    ("truth/k17", (300, 50, 460, 210), "owl"),
    ("truth/k18", (380, 610, 500, 750), "rabbit"),
    ("truth/k20", (500, 30, 680, 190), "airplane"),
    ("truth/k20", (400, 400, 530, 505), "cow"),
    ("truth/k24", (20, 30, 150, 170), "red apple"),
    ("bench2", (30, 360, 190, 500), "pumpkin"),
    ("bench2", (340, 380, 470, 505), "mushroom"),
    ("billow926-12-Wc-Zgx6Y", (210, 30, 360, 180), "umbrella"),
    ("billow926-12-Wc-Zgx6Y", (395, 395, 505, 505), "dog"),
    ("overture-creations-5sI6fQgYIuo", (310, 400, 420, 510), "cat"),
    ("overture-creations-5sI6fQgYIuo", (40, 20, 190, 170), "rocket"),
    ("6458524847_2f4c361183_k", (20, 60, 170, 210), "basketball"),
    ("6458524847_2f4c361183_k", (380, 340, 500, 470), "backpack"),
]
_WIDER = 4  # pixels around the thing that are not counted
_AROUND = 32  # pixels around the box that LPIPS sees
_TILE = 220  # side of a picture on the sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "retouch-benchmarks")
    arguments = parser.parse_args()
    lpips, rows, tiles = load(arguments.cache), [], []
    editor = retouch.load("builtin", device="cpu", progress=False)
    for seed, (name, box, thing) in enumerate(CASES):
        photo = np.array(Image.open(arguments.photos / f"{name}.png").convert("RGB"))
        edits = {
            way: editor.inpaint(photo, box, f"a {thing}", seed=seed, matte=way == "matte")
            for way in ("plain", "matte")
        }
        results = {way: np.asarray(edit.image) for way, edit in edits.items()}
        ring = ring_of(photo, edits["matte"], box)
        row: dict[str, Any] = {
            "photo": name,
            "box": box,
            "thing": thing,
            "ring": round(float(ring.mean()), 3),
        }
        for way, result in results.items():
            row[way] = measured(photo, result, box, ring, lpips)
        rows.append(row)
        print(json.dumps(row), flush=True)
        tiles.append(np.hstack([tile(picture, box) for picture in (photo, *results.values())]))
    medians = {
        way: {key: round(float(np.median([row[way][key] for row in rows])), 3) for key in rows[0][way]}
        for way in ("plain", "matte")
    }
    better = {
        "detail": sum(is_nearer_to_one(row["matte"]["detail"], row["plain"]["detail"]) for row in rows),
        "lpips": sum(row["matte"]["lpips"] < row["plain"]["lpips"] for row in rows),
    }
    print(json.dumps({"medians": medians, "matte is better": better}))
    RESULTS.write_text(
        json.dumps({"medians": medians, "matte is better": better, "cases": rows}, indent=1) + "\n"
    )
    if arguments.sheets:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        for part in range(0, len(tiles), 12):
            pairs = [np.hstack(tiles[first : first + 2]) for first in range(part, part + 12, 2)]
            Image.fromarray(np.vstack(pairs)).save(arguments.sheets / f"things_{part // 12 + 1}.png")


def ring_of(photo: np.ndarray, edit: retouch.Edit, box: Box) -> np.ndarray:
    """Return which pixels of the box show no thing: those that are as the fill by patches has them."""
    grounds = Grounds(edit.photo, read_photo_mask(box, edit.photo.size))
    ground = photo.copy()
    left, top, right, bottom = edit.crop
    ground[top:bottom, left:right] = grounds.of(edit.crop)
    thing = (np.asarray(edit.image) != ground).any(axis=-1).astype(np.uint8)
    wider = cv2.dilate(thing, np.ones((2 * _WIDER + 1,) * 2, np.uint8)) > 0
    return ~wider[box[1] : box[3], box[0] : box[2]]


def is_nearer_to_one(first: float, second: float) -> bool:
    """Compare two ratios."""
    return max(first, 1 / first) < max(second, 1 / second)


def measured(
    photo: np.ndarray, result: np.ndarray, box: Box, ring: np.ndarray, lpips: Lpips
) -> dict[str, float]:
    """Return detail and LPIPS of the ring."""
    left, top, right, bottom = box
    slopes = [slope(picture)[top:bottom, left:right][ring].mean() for picture in (result, photo)]
    # The thing shows the photo, so that only the ring differs; two pictures of the same size as the box.
    shown = photo.copy()
    shown[top:bottom, left:right][ring] = result[top:bottom, left:right][ring]
    seen = np.s_[max(top - _AROUND, 0) : bottom + _AROUND, max(left - _AROUND, 0) : right + _AROUND]
    pair = [
        torch.from_numpy(picture[seen].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for picture in (shown, photo)
    ]
    return {"detail": round(float(slopes[0] / slopes[1]), 3), "lpips": round(float(lpips(*pair)), 4)}


def slope(pixels: np.ndarray) -> np.ndarray:
    """Return the gradient of the brightness."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def tile(picture: np.ndarray, box: Box) -> np.ndarray:
    """Return the box with as much around it as a crop shows."""
    left, top, right, bottom = box
    more = round(0.3 * max(right - left, bottom - top))
    part = Image.fromarray(picture).crop((left - more, top - more, right + more, bottom + more))
    return np.asarray(part.resize((_TILE, _TILE), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
