"""Line plots as PNG, drawn with Pillow: dark on white, readable on light and dark pages."""

from __future__ import annotations

from itertools import pairwise
from math import log
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SCALE = 760, 440, 4  # drawn at four times the size, saved at twice the size
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 76, 62
COLOURS = ("#0b62a8", "#c8501e", "#3a7d44", "#7a4b94")  # distinguishable by colour-blind people
INK, FAINT = "#222222", "#dddddd"

Series = dict[str, list[tuple[float, float]]]


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _nice_step(largest: float) -> float:
    """Return a round distance between grid lines, for four to eight lines."""
    ten = 1e-6
    while True:
        for step in (ten, 2 * ten, 5 * ten):
            if largest / step <= 6:
                return step
        ten *= 10


def plot(path: Path, title: str, across: str, up: str, series: Series, ticks: list[float]) -> None:
    """Draw lines with a logarithmic x axis, marked at `ticks`, and a linear y axis; the last is dashed."""
    points = [point for line in series.values() for point in line]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    step = _nice_step(max(y for _, y in points))
    lines = int(max(y for _, y in points) / step) + 1
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        right = 12 + (wide - 24) * log(x / low) / log(high / low)
        return (LEFT + right) * SCALE, (HEIGHT - BOTTOM - tall * y / (lines * step)) * SCALE

    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT * SCALE, 10 * SCALE), title, INK, _font(17))
    edges = LEFT * SCALE, (WIDTH - RIGHT) * SCALE
    for index in range(lines + 1):
        y = place(low, index * step)[1]
        draw.line((edges[0], y, edges[1], y), FAINT if index else INK, SCALE)
        draw.text((edges[0] - 8 * SCALE, y), f"{index * step:.6g}", INK, _font(13), anchor="rm")
    for tick in ticks:
        x, y = place(tick, 0)
        draw.line((x, y, x, y + 5 * SCALE), INK, SCALE)
        draw.text((x, y + 9 * SCALE), f"{tick:g}", INK, _font(13), anchor="mt")
    draw.text(((edges[0] + edges[1]) / 2, (HEIGHT - 12) * SCALE), across, INK, _font(14), anchor="mb")
    label = Image.new("RGB", (tall * SCALE, 22 * SCALE), "white")
    ImageDraw.Draw(label).text((tall * SCALE / 2, 11 * SCALE), up, INK, _font(14), anchor="mm")
    picture.paste(label.rotate(90, expand=True), (6 * SCALE, TOP * SCALE))

    at = LEFT * SCALE
    for number, (name, line) in enumerate(series.items()):
        colour, dashed = COLOURS[number % len(COLOURS)], number == len(series) - 1
        for start, end in pairwise(line):
            _stroke(draw, place(*start), place(*end), colour, dashed)
        for x, y in (place(*point) for point in line):
            draw.ellipse((x - 4 * SCALE, y - 4 * SCALE, x + 4 * SCALE, y + 4 * SCALE), colour, "white", SCALE)
        _stroke(draw, (at, 50 * SCALE), (at + 30 * SCALE, 50 * SCALE), colour, dashed)
        draw.text((at + 37 * SCALE, 50 * SCALE), name, INK, _font(13), anchor="lm")
        at += 60 * SCALE + draw.textlength(name, _font(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.reduce(2).quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _stroke(
    draw: ImageDraw.ImageDraw, a: tuple[float, float], b: tuple[float, float], colour: str, dashed: bool
) -> None:
    length = ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5
    dash = 7 * SCALE if dashed else length
    start = 0.0
    while start < length:
        end = min(start + dash, length)
        ends = [(a[0] + (b[0] - a[0]) * t / length, a[1] + (b[1] - a[1]) * t / length) for t in (start, end)]
        draw.line(ends, colour, round(2.5 * SCALE))
        start = end + 5 * SCALE
