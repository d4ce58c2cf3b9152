"""Paint with a checkpoint in several single-threaded processes, which is fastest for small networks.

There are two ways: whole edits with `retouch.load(...)`, as users make them, and batches through the
pipeline, for comparing settings, where the crop is the whole picture.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import retouch
from retouch.checkpoints.profile import Profile
from retouch.editing.settings import scheduled_steps
from retouch.images.fill import fill_hole
from retouch.images.join import join
from retouch.images.mask import Mask
from training.data import Composer, Pictures

SIDE = 128
FACTOR = 8
BATCH = 16


@dataclass(frozen=True)
class Edit:
    """One call of an editing function. Its answer is the result, (height, width, 3), and the crop."""

    verb: str
    photo: np.ndarray
    hole: np.ndarray
    seed: int
    prompt: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """The settings of a batch."""

    steps: int = 20
    guidance: float = 1.0
    fill: str = "original"
    strength: float = 1.0

    def __str__(self) -> str:
        start = "from noise" if self.strength == 1 else f"from {self.fill} at strength {self.strength:g}"
        return f"{start}, {self.steps} steps, guidance {self.guidance:g}"


@dataclass(frozen=True)
class Batch:
    """Pictures of 128 pixels with their masks. The answer is the painted pictures."""

    prompts: list[str]
    pictures: np.ndarray
    holes: np.ndarray
    seeds: list[int]
    setting: Setting


class Painters:
    """Processes that have loaded the checkpoint. `regular` uses its 4-channel UNet."""

    def __init__(self, folder: Path, regular: bool = False, count: int | None = None):
        self.count = count or len(os.sched_getaffinity(0))
        self.pool = ProcessPoolExecutor(
            self.count, mp_context=get_context("spawn"), initializer=_start, initargs=(str(folder), regular)
        )

    def __enter__(self) -> Painters:
        return self

    def __exit__(self, *_: Any) -> None:
        self.pool.shutdown(cancel_futures=True)

    def edits(self, jobs: Iterable[Edit]) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
        return self.pool.map(_edit, jobs)

    def batch(
        self, prompts: list[str], pictures: np.ndarray, holes: np.ndarray, setting: Setting, seed: int = 0
    ) -> np.ndarray:
        """Paint all pictures, in batches that keep every process busy."""
        starts = range(0, len(prompts), BATCH)
        jobs = [
            Batch(
                prompts[at : at + BATCH],
                pictures[at : at + BATCH],
                holes[at : at + BATCH],
                [seed + number for number in range(at, min(at + BATCH, len(prompts)))],
                setting,
            )
            for at in starts
        ]
        return np.concatenate(list(self.pool.map(_batch, jobs)))


_editor: Any = None
_folder: tempfile.TemporaryDirectory[str] | None = None


def _start(folder: str, regular: bool) -> None:
    global _editor, _folder
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if regular:
        # The same checkpoint with `unet_regular` as its `unet`.
        _folder = tempfile.TemporaryDirectory()
        for entry in Path(folder).resolve().iterdir():
            if entry.name not in ("unet", "unet_regular"):
                (Path(_folder.name) / entry.name).symlink_to(entry)
        (Path(_folder.name) / "unet").symlink_to(Path(folder).resolve() / "unet_regular")
        folder = _folder.name
    _editor = retouch.load(folder, device="cpu", progress=False)
    _editor.pipeline.set_progress_bar_config(disable=True)


def _edit(job: Edit) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    verb = getattr(_editor, job.verb)
    prompt = {"prompt": job.prompt} if job.verb == "inpaint" else {}
    # The whole painting is judged, as the network made it.
    done = verb(job.photo, job.hole, seed=job.seed, **prompt, **{"matte": False, **job.options})
    return np.asarray(done.image), tuple(done.crop)


def _batch(job: Batch) -> np.ndarray:
    setting, inputs = job.setting, []
    cells = np.stack([_cells(hole) for hole in job.holes])
    for picture, hole, seed in zip(job.pictures, job.holes, job.seeds, strict=True):
        inputs.append(fill_hole(picture, hole, setting.fill, seed=seed))
    painted = _editor.pipeline(
        prompt=job.prompts,
        image=np.stack(inputs).astype(np.float32) / 255,
        mask_image=torch.from_numpy(cells[:, None].astype(np.float32)),
        height=SIDE,
        width=SIDE,
        strength=setting.strength,
        num_inference_steps=scheduled_steps(setting.steps, setting.strength),
        guidance_scale=setting.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in job.seeds],
        output_type="np",
    ).images
    return np.rint(np.clip(painted, 0, 1) * 255).astype(np.uint8)


def _cells(hole: np.ndarray) -> np.ndarray:
    """Return the mask grown to whole latents, as an edit does it."""
    size = hole.shape[0] // FACTOR
    coarse = hole.reshape(size, FACTOR, size, FACTOR).any(axis=(1, 3))
    return np.kron(coarse, np.ones((FACTOR, FACTOR), bool))


def joined(pictures: np.ndarray, painted: np.ndarray, holes: np.ndarray, method: Any) -> np.ndarray:
    """Join the painted parts to the pictures, as an edit does it."""
    feather = 0.02 * SIDE
    how = {"feather": feather, "method": method, "reach": feather / 2 + FACTOR}
    triples = zip(pictures, painted, holes, strict=True)
    return np.stack(
        [join(picture, new, Mask(hole.astype(np.float32)), **how) for picture, new, hole in triples]
    )


def defaults(folder: Path, verb: str) -> dict[str, Any]:
    """Return the default options of an editing function with this checkpoint."""
    return Profile.of(folder).defaults_of(verb)


def prompt_for(word: str) -> str:
    """Return a prompt for a name, as a person would type it."""
    if word.endswith("s") and not word.endswith("ss"):
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def photo_and_hole(pictures: Pictures, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo of 320 pixels and a mask a third to a half as wide; its shape hints at no name."""
    random = np.random.default_rng([21, number])
    row = random.choice(pictures.photo_rows, p=pictures.weights)
    photo = np.ascontiguousarray(pictures.photos[row][:, :: random.choice([-1, 1])])
    side = photo.shape[0]
    across, down = random.uniform(0.30, 0.46) * side * np.exp(random.uniform(-0.12, 0.12, 2))
    x, y = random.uniform(0.32, 0.68, 2) * side
    hole = np.zeros((side, side), np.uint8)
    box = [int(edge) for edge in (x - across / 2, y - down / 2, x + across / 2, y + down / 2)]
    if random.random() < 0.5:
        hole[max(box[1], 0) : box[3], max(box[0], 0) : box[2]] = 1
    else:
        cv2.ellipse(hole, (int(x), int(y)), (int(across / 2), int(down / 2)), 0, 0, 360, 1, -1)
    return photo, hole > 0


def framed(photo: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the crop of 128 pixels around a mask as in training, where the mask has 70 % of the side."""
    side = photo.shape[0]
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    length = min(side, int(1.42 * max(np.ptp(rows), np.ptp(columns))))
    top = int(np.clip((rows[0] + rows[-1] - length) // 2, 0, side - length))
    left = int(np.clip((columns[0] + columns[-1] - length) // 2, 0, side - length))
    part = slice(top, top + length), slice(left, left + length)
    picture = cv2.resize(photo[part], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small = cv2.resize(hole[part].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return picture, small > 0.5


def plain_background(pictures: Pictures, count: int, seed: int = 22) -> tuple[np.ndarray, np.ndarray]:
    """Return backgrounds of 128 pixels without objects, and masks as in training."""
    composer = Composer(pictures, SIDE, seed=seed)
    samples = [composer.sample(number, empty=1) for number in range(count)]
    return np.stack([sample.picture for sample in samples]), np.stack([sample.hole for sample in samples])
