"""Compose training samples: an object on a background, a mask as a person would draw it, and a caption.

Every sample is a function of the seed and its number, so training can stop and continue at any step. Held-out
backgrounds and objects are used only on request.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from training.vocabulary import NAMES, Name

cv2.setNumThreads(1)

EMPTY = -1  # the index of "no name": a background alone, with an empty caption

# An empty caption always goes with a background alone: it means removal, and guidance moves away from it.
STYLES = {"emoji": "3d icon", "clipart": "drawing"}


@dataclass(frozen=True)
class Pictures:
    """The photos and cut-outs of one part of the split: training or held out."""

    photos: np.ndarray  # (n, side, side, 3)
    smallest: np.ndarray  # (n,) the smallest crop that is not enlarged
    weights: np.ndarray  # (n,) probability of each photo
    cutouts: np.ndarray  # (m, side, side, 4) premultiplied colour
    photo_rows: np.ndarray  # rows of photos and cutouts in this part of the split
    cutout_rows: np.ndarray
    objects: list[list[tuple[int, str]]] = field(
        default_factory=list
    )  # by name: rows of cutouts and their kind
    names: tuple[Name, ...] = NAMES

    @classmethod
    def load(cls, state: Path, held_out: bool = False) -> Pictures:
        folder = state / "data"
        photo_facts = json.loads((folder / "photos.json").read_text())
        cutout_facts = json.loads((folder / "cutouts.json").read_text())
        photo_rows = np.flatnonzero([fact["held_out"] == held_out for fact in photo_facts])
        sources = [photo_facts[row]["source"] for row in photo_rows]
        # A compromise: with equal weights for squares two thirds are landscapes; with equal weights for
        # sources the few pictures of a small source repeat too often.
        weights = np.array([sources.count(source) ** -0.5 for source in sources])
        named, objects = _name_cutouts(cutout_facts, held_out)
        # Compares keys, not rows, because some drawings are in two folders of their package.
        unnamed = [row for row, fact in enumerate(cutout_facts) if fact["key"] not in named]
        return cls(
            photos=np.load(folder / "photos.npy", mmap_mode="r"),
            smallest=np.array([fact["smallest"] for fact in photo_facts]),
            weights=weights / weights.sum(),
            cutouts=np.load(folder / "cutouts.npy", mmap_mode="r"),
            photo_rows=photo_rows,
            cutout_rows=np.array(
                [row for row in unnamed if _tenth(cutout_facts[row]["key"]) == held_out]
                + [row for rows in objects for row, _ in rows]
            ),
            objects=objects,
        )


def _tenth(key: str) -> bool:
    return zlib.crc32(key.encode()) % 10 == 0


def _name_cutouts(facts: list[dict], held_out: bool) -> tuple[set[str], list[list[tuple[int, str]]]]:
    """Return the keys of all named cut-outs, and for each name its rows in this part of the split.

    The emoji of a name is the only picture of its kind, so it is always used for training. If a name has
    several drawings, the last one is held out.
    """
    by_key = {fact["key"]: row for row, fact in reversed(list(enumerate(facts)))}
    named = {key for name in NAMES for key in (name.emoji, *name.drawings)}
    objects = []
    for name in NAMES:
        drawings = [by_key[key] for key in name.drawings if key in by_key]
        emoji = [by_key[name.emoji]] if name.emoji in by_key else []
        kept, hidden = (drawings[:-1], drawings[-1:]) if len(drawings) > 1 else (drawings, [])
        if held_out:
            objects.append([(row, "clipart") for row in hidden])
        else:
            objects.append([(row, "emoji") for row in emoji] + [(row, "clipart") for row in kept])
    return named, objects


@dataclass(frozen=True)
class Sample:
    picture: np.ndarray  # (size, size, 3) bytes
    hole: np.ndarray  # (size, size) bool, True = repaint
    caption: str
    name: int  # index into the names, or EMPTY


class Composer:
    """Sampling without state: a sample depends only on the seed and its number."""

    def __init__(self, pictures: Pictures, size: int = 128, seed: int = 0):
        self.pictures = pictures
        self.size = size
        self.seed = seed
        self._drawable = [index for index, rows in enumerate(pictures.objects) if rows]

    def random(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])

    def sample(self, number: int, empty: float = 0.25) -> Sample:
        """Compose a UNet sample: an object with a mask, or with probability `empty` no object."""
        random = self.random(number)
        background = self.background(random)
        name = int(random.choice(self._drawable))
        row, kind = self._choose(random, self.pictures.objects[name])
        cutout = self._place(random, row)
        hole = draw_hole(random, cutout[..., 3] > 40)
        if random.random() < empty:
            if random.random() < 0.4:
                hole = draw_strokes(random, self.size)
            return Sample(background, hole, "", EMPTY)
        caption = describe(random, self.pictures.names[name], kind)
        return Sample(paste(background, cutout, random.uniform(0.9, 1.06)), hole, caption, name)

    def picture(self, number: int, plain: float = 0.45) -> np.ndarray:
        """Compose a picture for the autoencoder: as for the UNet, with more kinds and stronger colours."""
        random = self.random(number)
        picture = self.background(random)
        if random.random() < 0.35:
            picture = shift_colours(random, picture)
        if random.random() < plain:
            return picture
        cutout = self._place(random, int(random.choice(self.pictures.cutout_rows)))
        picture = paste(picture, cutout, random.uniform(0.9, 1.06))
        if random.random() < 0.15:  # the masked picture, which is grey under the mask
            picture = np.where(draw_hole(random, cutout[..., 3] > 40)[..., None], np.uint8(128), picture)
        return picture

    def background(self, random: np.random.Generator) -> np.ndarray:
        pictures, size = self.pictures, self.size
        row = random.choice(pictures.photo_rows, p=pictures.weights)
        photo = pictures.photos[row]
        side = photo.shape[0]
        crop = int(random.integers(min(pictures.smallest[row], side), side + 1))
        top, left = random.integers(0, side - crop + 1, 2)
        photo = np.ascontiguousarray(photo[top : top + crop, left : left + crop])
        photo = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)
        return photo[:, ::-1] if random.random() < 0.5 else photo

    def _choose(self, random: np.random.Generator, rows: list[tuple[int, str]]) -> tuple[int, str]:
        """Choose a cut-out, mostly the emoji: one frequent picture is learnt faster than many rare ones."""
        emoji = [entry for entry in rows if entry[1] == "emoji"]
        drawings = [entry for entry in rows if entry[1] != "emoji"]
        pool = emoji if emoji and (not drawings or random.random() < 0.85) else drawings
        return pool[random.integers(len(pool))]

    def _place(self, random: np.random.Generator, row: int) -> np.ndarray:
        """Rotate, scale and place a cut-out in the picture.

        Photos are cropped around the hole before painting. So most objects are in the middle and have similar
        sizes, which takes half as many samples to learn as objects at any place.
        """
        size = self.size
        cutout = np.ascontiguousarray(self.pictures.cutouts[row])
        side = cutout.shape[0]
        usual = random.random() < 0.8
        share = random.uniform(0.60, 0.80) if usual else random.uniform(0.35, 0.90)
        slack = 0.04 if usual else (1 - share) / 2
        scale = share * size / side
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), random.normal(0, 4 if usual else 10), scale)
        if random.random() < 0.5:
            matrix = matrix @ np.array([[-1, 0, side], [0, 1, 0], [0, 0, 1]], float)
        matrix[:, 2] += size / 2 - side / 2 + random.uniform(-slack, slack, 2) * size
        smooth = cv2.INTER_AREA if scale < 0.8 else cv2.INTER_LINEAR
        if scale < 0.6:  # warpAffine does not average, so the picture is halved first
            half = cv2.resize(cutout, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
            matrix[:, :2] *= 2
            return cv2.warpAffine(half, matrix, (size, size), flags=cv2.INTER_LINEAR)
        return cv2.warpAffine(cutout, matrix, (size, size), flags=smooth)


def paste(background: np.ndarray, cutout: np.ndarray, brightness: float = 1.0) -> np.ndarray:
    """Paste a cut-out (premultiplied colour) over the background."""
    clear = 1 - cutout[..., 3:] / 255.0
    return (background * clear + cutout[..., :3] * brightness).clip(0, 255).astype(np.uint8)


def shift_colours(random: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Rotate the hues and change the saturation, because landscapes have little red and green."""
    hsv = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + random.uniform(0, 180)) % 180
    hsv[..., 1] = (hsv[..., 1] * random.uniform(0.8, 2.2)).clip(0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def describe(random: np.random.Generator, name: Name, kind: str) -> str:
    # Drawings have other colours, so their captions use only the name ("balloon", not "red balloon").
    spellings = (name.word,) if kind == "clipart" else name.spellings
    words = spellings[random.integers(len(spellings))]
    article = (
        "" if words.endswith("s") and not words.endswith("ss") else "an " if words[0] in "aeiou" else "a "
    )
    phrase = article + words if random.random() < 0.6 else words
    # Captions of drawings always name the style, because drawings look different from the emoji.
    if kind == "clipart" or random.random() < 0.25:
        return f"{STYLES[kind]} of {phrase}"
    return phrase


def draw_hole(random: np.random.Generator, silhouette: np.ndarray) -> np.ndarray:
    """Draw a mask over the silhouette, in one of the ways that people draw masks."""
    size = silhouette.shape[0]
    rows, columns = np.where(silhouette)
    if not len(rows):
        return draw_strokes(random, size)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    margins = (random.uniform(0, 0.10, 4) * size).astype(int) + 1
    hole = np.zeros((size, size), np.uint8)
    way = random.random()
    if way < 0.35:  # along the outline
        width = int(random.uniform(0.02, 0.12) * size) * 2 + 1
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
        hole = cv2.dilate(silhouette.astype(np.uint8), brush)
    elif way < 0.70:  # a box
        hole[
            max(0, top - margins[0]) : bottom + margins[1], max(0, left - margins[2]) : right + margins[3]
        ] = 1
    elif way < 0.88:  # an ellipse
        centre = (int(left + right) // 2, int(top + bottom) // 2)
        axes = (int((right - left) * 0.62) + int(margins[0]), int((bottom - top) * 0.62) + int(margins[1]))
        cv2.ellipse(hole, centre, axes, 0, 0, 360, 1, -1)
    else:  # scribbled over
        hole = cv2.dilate(silhouette.astype(np.uint8), np.ones((5, 5), np.uint8))
        hole |= draw_strokes(random, size, (rows, columns)).astype(np.uint8)
    return (hole > 0) | silhouette


def draw_strokes(
    random: np.random.Generator, size: int, points: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Draw a few strokes of a thick brush, through the points if they are given."""
    canvas = np.zeros((size, size), np.uint8)
    here = random.uniform(0.2, 0.8, 2) * size
    for _ in range(random.integers(2, 7)):
        if points is None:
            there = (here + random.normal(0, size * 0.3, 2)).clip(0, size)
        else:
            chosen = random.integers(len(points[0]))
            there = np.array([points[1][chosen], points[0][chosen]], float)
        ends = [tuple(end.astype(int).tolist()) for end in (here, there)]
        cv2.line(canvas, *ends, 1, int(size * random.uniform(0.08, 0.22)))
        here = there
    return canvas > 0
