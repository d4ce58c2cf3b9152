"""Feed-forward networks for erasing, in the forms of their published ONNX files.

A form says what a file's inputs and its output mean. It is recognised by types and channels of the inputs,
since their names differ between exports. A hole's content never reaches a network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from retouch.errors import CheckpointError
from retouch.images.fill import fill_hole
from retouch.images.patch_fill import Stopped

Paint = Callable[[np.ndarray, np.ndarray, int, Callable[[int, int], Any]], np.ndarray]

SIDE = 512  # pixels, where a file leaves its size open; the published ones were trained at it
_MOST_RESIZED = 2  # times the side: a file that resizes itself skips pixels, which aliases beyond this
_MOST_STRETCHED = 2  # aspect of a crop that is stretched to a square; beyond, its mirror image continues it
_STRANGE = (
    64  # levels by which known pixels differ, on average, where a file is not of the form it looks like
)
_EDGE = 1 / 64  # of a crop's longer side, in which networks paint badly


@dataclass(frozen=True)
class Network:
    """A network, ready to paint."""

    title: str
    side: int  # of the square that it paints
    # (pixels (height, width, 3) of 8 bits, hole (height, width), seed, progress(done, of)) -> pixels
    paint: Paint
    is_seeded: bool = False  # False: the same crop always gives the same pixels


@dataclass(frozen=True)
class Form:
    """What a file's inputs and output mean."""

    title: str
    inputs: tuple[tuple[str, int], ...]  # type and channels, the most channels first
    # (pixels (side, side, 3) of 0 to 255, keep (side, side) of 0 and 1) -> the inputs, in that order
    arrange: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
    # (output (side, side, 3), the pixels, keep) -> pixels of 0 to 255
    read: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    resizes: bool = False  # the file takes any size, and cuts and resizes itself


def _bytes(pixels: np.ndarray, keep: np.ndarray) -> Sequence[np.ndarray]:
    return np.rint(pixels).astype(np.uint8), (255 * keep[..., None]).astype(np.uint8)


def _zero_to_one(pixels: np.ndarray, keep: np.ndarray) -> Sequence[np.ndarray]:
    return pixels / 255 * keep[..., None], 1 - keep[..., None]


def _minus_one_to_one(pixels: np.ndarray, keep: np.ndarray) -> Sequence[np.ndarray]:
    return (np.concatenate([keep[..., None] - 0.5, (pixels / 127.5 - 1) * keep[..., None]], axis=-1),)


def _as_it_is(output: np.ndarray, pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return output.astype(np.float32)


def _of_either_scale(output: np.ndarray, pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Exports end at 1 or at 255; known pixels, which the network repeats, say at which."""
    known = keep > 0
    if not known.any():
        return output * 255 if output.max() <= 2 else output
    ours, its = pixels[known].mean(), output[known].mean()
    return output * 255 if abs(its * 255 - ours) < abs(its - ours) else output


def _from_minus_one(output: np.ndarray, pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return (output + 1) * 127.5


FORMS = (
    Form("MI-GAN", (("uint8", 3), ("uint8", 1)), _bytes, _as_it_is, resizes=True),
    Form("LaMa", (("float", 3), ("float", 1)), _zero_to_one, _of_either_scale),
    Form("MI-GAN's generator", (("float", 4),), _minus_one_to_one, _from_minus_one),
)


def network_of(session: Any, name: str) -> Network:
    """Return the network of an open file; refuse a file of no known form."""
    inputs = sorted(session.get_inputs(), key=lambda each: -_channels(each))
    found = tuple((each.type.removeprefix("tensor(").removesuffix(")"), _channels(each)) for each in inputs)
    form = next((form for form in FORMS if form.inputs == found), None)
    sides = {side for each in inputs for side in each.shape[2:] if isinstance(side, int)}
    if form is None or len(sides) > 1 or len(session.get_outputs()) != 1:
        given = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in session.get_inputs())
        accepted = "; ".join(
            f"{form.title} ({' and '.join(f'{kind} with {count} channels' for kind, count in form.inputs)})"
            for form in FORMS
        )
        raise CheckpointError(
            f"{name} is no eraser of a known form: its inputs are {given}. Known are, in a square: "
            f"{accepted}; with one output. Use a file of one of them.",
            parameter="name",
        )
    side = sides.pop() if sides else SIDE
    names = [each.name for each in inputs]
    return Network(form.title, side, functools.partial(_paint, session, form, names, side))


def _channels(value: Any) -> int:
    """Return an input's channels; 0 if it is no batch of pictures with a fixed number of them."""
    shape = value.shape
    return shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0


def _paint(
    session: Any,
    form: Form,
    names: Sequence[str],
    side: int,
    pixels: np.ndarray,
    hole: np.ndarray,
    seed: int,
    tell: Callable[[int, int], Any],
) -> np.ndarray:
    """Return a crop as the network paints it. Only its hole counts; what is known may be off by resizing."""
    if tell(0, 1) is False:
        raise Stopped
    (height, width), edges = hole.shape, _margins(hole)
    pixels = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_REFLECT)
    hole = cv2.copyMakeBorder(hole.astype(np.uint8), *edges, cv2.BORDER_REFLECT) > 0
    back: Callable[[np.ndarray], np.ndarray]
    if form.resizes and max(hole.shape) <= _MOST_RESIZED * side:
        square, keep, back = pixels, (~hole).astype(np.float32), _to_bytes
    else:
        square, keep, back = in_square(pixels, hole, side)
    if form.resizes:  # it mixes its result with the given pixels along the hole, where the old thing shows
        square = fill_hole(_to_bytes(square), keep == 0, "telea")
    arrays = form.arrange(square, keep)
    output = session.run(
        None,
        {
            name: np.ascontiguousarray(array.transpose(2, 0, 1)[None])
            for name, array in zip(names, arrays, strict=True)
        },
    )[0]
    painted = form.read(output[0].transpose(1, 2, 0), square, keep)
    tell(1, 1)
    return back(painted)[edges[0] : edges[0] + height, edges[2] : edges[2] + width]


def _margins(hole: np.ndarray) -> tuple[int, int, int, int]:
    """Return how many pixels of its mirror image continue a crop at the top, bottom, left and right.

    Networks paint dark lines along the edge of their square, so a hole must not reach it.
    """
    margin = math.ceil(_EDGE * max(hole.shape))
    sides = hole[0], hole[-1], hole[:, 0], hole[:, -1]
    top, bottom, left, right = (margin if side.any() else 0 for side in sides)
    return top, bottom, left, right


def in_square(
    pixels: np.ndarray, hole: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return a crop in a square of `side` pixels, what is known there, and the way back.

    The square holds floats of 0 to 255, and 1 where a pixel is known, else 0. A crop that is not square
    (the photo is narrow) is stretched, which keeps more of its pixels than its mirror image beside it would.
    The way back keeps what is known.
    """
    height, width = hole.shape
    longer = max(height, width)
    down, across = (max(0, -(-longer // _MOST_STRETCHED) - length) for length in (height, width))
    edges = down // 2, down - down // 2, across // 2, across - across // 2
    interpolation = cv2.INTER_AREA if longer > side else cv2.INTER_LINEAR
    inside = cv2.copyMakeBorder(hole.astype(np.float32), *edges, cv2.BORDER_REFLECT)
    whole = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_REFLECT).astype(np.float32)
    square = cv2.resize(whole, (side, side), interpolation=interpolation)
    # A pixel that the hole only touches has colours of what is in the hole.
    keep = (cv2.resize(inside, (side, side), interpolation=interpolation) <= 0).astype(np.float32)

    def back(painted: np.ndarray) -> np.ndarray:
        size = width + across, height + down
        # MI-GAN's generator does not repeat the known pixels, and enlarging mixes them with the others.
        small = np.where(keep[..., None] > 0, square, painted).astype(np.float32)
        filled = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
        return _to_bytes(filled[edges[0] : edges[0] + height, edges[2] : edges[2] + width])

    return square, keep, back


def _to_bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
