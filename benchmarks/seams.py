"""Measure the seams that different ways of joining leave around a repainted part.

The model's output is simulated, so that only the joining is compared and the truth is known. The simulation
applies the effect of an autoencoder (a little blur and noise, a gain, and a shift of colours that varies over
the picture). The hole has the original's own content, a continuation of the surroundings, or content that
does not fit. Photos are generated; more can come from a folder with name.png and name_mask.png.

The seam is measured at the mask's edge and in the middle of our feather outside of it; the worse one counts.

    python benchmarks/seams.py [--pictures FOLDER] [--sheet seams.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFilter

from retouch.images.crops import crops
from retouch.images.fill import fill_hole
from retouch.images.join import join
from retouch.images.mask_reading import read_photo_mask
from retouch.images.overlay import apply_overlay
from retouch.images.seam import seam_score

WORKING = 512
Model = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pixels and mask at the working size -> pixels


def autoencoded(pixels: np.ndarray, amount: float) -> np.ndarray:
    draw = np.random.default_rng(1)
    height, width = pixels.shape[:2]
    values = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 0.7)
    values = 128 + (values - 128) * (1 + 0.05 * amount) + amount * np.array([5.0, -4.0, 6.0])
    drift = cv2.resize(
        draw.normal(0, 4 * amount, (4, 4, 3)).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    return np.clip(np.rint(values + drift + draw.normal(0, 1.5, pixels.shape)), 0, 255).astype(np.uint8)


def same(amount: float) -> Model:
    return lambda pixels, hole: autoencoded(pixels, amount)


def continued(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Return a smooth continuation of the surroundings with their grain, as erasing makes it."""
    filled = fill_hole(pixels, hole, "blur").astype(np.float32)
    grain = np.abs(pixels - cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 2))[~hole].mean() * 1.25
    noise = cv2.GaussianBlur(
        np.random.default_rng(2).normal(0, grain * 3, pixels.shape).astype(np.float32), (0, 0), 1
    )
    filled = np.where(hole[..., None], filled + noise, pixels)
    return autoencoded(np.clip(filled, 0, 255).astype(np.uint8), 1)


def misfit(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Return content that does not fit: the picture upside down."""
    return autoencoded(np.where(hole[..., None], pixels[::-1], pixels), 1)


MODELS: dict[str, Model] = {
    "same content": same(1),
    "strong shift": same(2.5),
    "continued": continued,
    "misfit": misfit,
}


def repainted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels that a model repaints: whole latents whose mask is at least one half."""
    levels = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    cells = levels.reshape(size[1] // 8, 8, size[0] // 8, 8).max(axis=(1, 3)) >= 0.5
    return np.kron(cells, np.ones((8, 8))) > 0


def whole(photo: Image.Image, mask: Image.Image, model: Model) -> Image.Image:
    """Simulate a pipeline on the whole photo."""
    width, height = (side // 8 * 8 for side in photo.size)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
    hole = repainted(np.asarray(mask) / 255, (width, height))
    return Image.fromarray(model(pixels, hole)).resize(photo.size, Image.Resampling.LANCZOS)


def plain(photo: Image.Image, mask: Image.Image, model: Model) -> Image.Image:
    return Image.composite(whole(photo, mask, model), photo, mask)


def overlay(blur: float) -> Callable[..., Image.Image]:
    def way(photo: Image.Image, mask: Image.Image, model: Model) -> Image.Image:
        soft = mask.filter(ImageFilter.GaussianBlur(blur))
        return apply_overlay(soft, photo, whole(photo, mask, model))

    return way


def padding_mask_crop(photo: Image.Image, mask: Image.Image, model: Model) -> Image.Image:
    box = read_photo_mask(mask, photo.size).crop_region(WORKING, WORKING, pad=32)
    size = (WORKING, WORKING)
    pixels = np.asarray(photo.crop(box).resize(size, Image.Resampling.LANCZOS))
    hole = repainted(np.asarray(mask.crop(box)) / 255, size)
    return apply_overlay(mask, photo, Image.fromarray(model(pixels, hole)), box)


def ours(method: str, feather: float | None = None) -> Callable[..., Image.Image]:
    def way(photo: Image.Image, mask: Image.Image, model: Model) -> Image.Image:
        result, whole_mask = np.array(photo), read_photo_mask(mask, photo.size)
        for crop in crops(whole_mask, WORKING, feather=feather or 0):
            given, inside = crop.of(result), whole_mask.cropped(crop.box)
            width = max(1.0, 0.02 * max(crop.size)) if feather is None else feather
            size = (crop.width, crop.height)
            pixels = np.asarray(Image.fromarray(given).resize(size, Image.Resampling.LANCZOS))
            at = repainted(inside.softened(width).levels, size)
            painted = Image.fromarray(model(pixels, at)).resize(crop.size, Image.Resampling.LANCZOS)
            given[:] = join(
                given,
                np.asarray(painted),
                inside,
                feather=width,
                method=method,
                reach=width / 2 + 8 * crop.size[0] / crop.width,
            )
        return Image.fromarray(result)

    return way


WAYS: dict[str, Callable[..., Image.Image]] = {
    "the photo itself": lambda photo, mask, model: photo,
    "plain pasting": plain,
    "apply_overlay": overlay(0),
    "apply_overlay, mask blurred by 33": overlay(33),
    "padding_mask_crop=32": padding_mask_crop,
    "join=plain, feather=0": ours("plain", 0),
    "join=plain": ours("plain"),
    "join=match, feather=0": ours("match", 0),
    "join=match (default)": ours("match"),
    "join=poisson, feather=0": ours("poisson", 0),
    "join=poisson": ours("poisson"),
}


def generated() -> dict[str, tuple[Image.Image, Image.Image]]:
    """Return a sky, a texture, stripes and a larger scene, each with a mask."""
    draw = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(512.0), np.arange(512.0))
    sky = np.stack([90 + down / 6, 130 + down / 8, 190 + down / 12], axis=-1) + draw.normal(
        0, 1, (512, 512, 3)
    )
    texture = 110 + cv2.GaussianBlur(draw.normal(0, 160, (512, 512, 3)), (0, 0), 2.5)
    stripes = 120 + 50 * np.sin((across + 0.5 * down) / 9)[..., None] * np.array([1, 0.8, 0.5])
    scene = cv2.resize(draw.normal(120, 60, (9, 12, 3)), (1200, 900), interpolation=cv2.INTER_CUBIC)
    scene += cv2.GaussianBlur(draw.normal(0, 20, (900, 1200, 3)), (0, 0), 1.2)
    found = {}
    for name, pixels in {"sky": sky, "texture": texture, "stripes": stripes, "scene": scene}.items():
        height, width = pixels.shape[:2]
        field = cv2.resize(draw.normal(0, 1, (7, 7)), (width, height), interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[0:height, 0:width]
        round_ = 1 - np.hypot(x / width - 0.5, y / height - 0.5) * 5
        mask = ((field * 0.5 + round_) > 0).astype(np.uint8) * 255
        found[name] = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), Image.fromarray(mask)
    return found


def from_folder(folder: Path) -> dict[str, tuple[Image.Image, Image.Image]]:
    pairs = {path: path.with_stem(f"{path.stem}_mask") for path in sorted(folder.glob("*.png"))}
    return {
        path.stem[:12]: (
            Image.open(path).convert("RGB"),
            Image.open(mask).convert("L").point(lambda level: 255 * (level >= 128)),
        )
        for path, mask in pairs.items()
        if mask.exists()
    }


def worst_seam(result: Image.Image, photo: Image.Image, mask: Image.Image) -> float:
    middle = read_photo_mask(mask, photo.size, grow=0.01 * max(photo.size))
    return max(seam_score(result, mask), seam_score(result, middle))


def shift_left(result: Image.Image, photo: Image.Image, mask: Image.Image) -> float:
    """Return the error of the colours in the hole, in levels, where its content is the photo's own."""
    first, second = (cv2.GaussianBlur(np.asarray(each, np.float32), (0, 0), 3) for each in (result, photo))
    inside = cv2.erode(np.asarray(mask), np.ones((5, 5))) > 0
    return float(np.abs(first - second)[inside].mean())


def old_left(result: Image.Image, photo: Image.Image, mask: Image.Image) -> float:
    """Return the share of the photo's own detail that is left in the hole, where it should be gone."""
    inside = np.asarray(mask) > 0
    new, old = (
        (pixels - cv2.GaussianBlur(pixels, (0, 0), 3))[inside]
        for pixels in (np.asarray(each, np.float32) for each in (result, photo))
    )
    return max(0.0, float((new * old).sum() / (old * old).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="a folder of photos with their masks")
    parser.add_argument("--sheet", type=Path, help="write a picture with all results")
    given = parser.parse_args()
    photos = generated() | (from_folder(given.pictures) if given.pictures else {})
    print(f"mean of {len(photos)} photos; the first columns are seams, 1 means no seam")
    print(f"| method | {' | '.join(MODELS)} | colour error | old detail left |")
    print("|---" * (len(MODELS) + 3) + "|")
    results = {}
    for name, way in WAYS.items():

        def mean(measure: Callable[..., float], label: str, name: str = name) -> float:
            return float(np.mean([measure(results[name, label, key], *photos[key]) for key in photos]))

        for label, model in MODELS.items():
            for key, (photo, mask) in photos.items():
                results[name, label, key] = way(photo, mask, model)
        figures = [f"{mean(worst_seam, label):.2f}" for label in MODELS]
        figures += [f"{mean(shift_left, 'same content'):.1f}", f"{100 * mean(old_left, 'continued'):.0f} %"]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)
    if given.sheet:
        rows = [(title, label) for title in photos for label in MODELS]
        sheet = Image.new("RGB", (256 * len(WAYS), 256 * len(rows)))
        for column, name in enumerate(WAYS):
            for row, (title, label) in enumerate(rows):
                sheet.paste(results[name, label, title].resize((256, 256)), (256 * column, 256 * row))
        sheet.save(given.sheet)


if __name__ == "__main__":
    main()
