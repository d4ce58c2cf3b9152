"""Composing: what is pasted where, what the hole covers, what the caption says; on cut-outs made in code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="training needs opencv-python-headless")
sys.path.insert(0, str(Path(__file__).parents[3]))  # training is no part of the installed package

from training import data
from training.data import EMPTY, Composer, Pictures
from training.vocabulary import NAMES, Name

RED, GREEN = (230, 20, 20), (20, 200, 40)


def disc(colour: tuple[int, int, int], side: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - side / 2
    cutout = np.zeros((side, side, 4), np.uint8)
    cutout[rows**2 + columns**2 < (side / 2 - 3) ** 2] = (*colour, 255)
    return cutout


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Two grey backgrounds, of which the second is held out, and a red and a green disc with names."""
    photos = np.stack([np.full((160, 160, 3), value, np.uint8) for value in (90, 160)])
    return Pictures(
        photos=photos,
        smallest=np.array([128, 128]),
        weights=np.array([1.0]),
        cutouts=np.stack([disc(RED), disc(GREEN)]),
        photo_rows=np.array([0]),
        cutout_rows=np.array([0, 1]),
        objects=[[(0, "emoji")], [(1, "clipart")]],
        names=(Name("red ball", "1", ("cherries",)), Name("apple", "2")),
    )


def test_the_hole_covers_the_object_and_the_rest_is_background(pictures: Pictures) -> None:
    composer = Composer(pictures)
    for number in range(60):
        sample = composer.sample(number, empty=0)
        red, green, blue = sample.picture[..., 0], sample.picture[..., 1], sample.picture[..., 2]
        painted = red.astype(int) - blue if sample.name == 0 else green.astype(int) - blue
        assert (painted > 100).sum() > 0.07 * painted.size
        assert sample.hole[painted > 100].all()
        # The object's soft edge may reach a pixel or two over a hole drawn along its outline.
        assert (np.abs(sample.picture[~sample.hole].astype(int) - 90).max(axis=-1) > 60).mean() < 0.01
        assert 0.05 < sample.hole.mean() < 1


def test_an_empty_caption_means_background_alone(pictures: Pictures) -> None:
    composer = Composer(pictures)
    samples = [composer.sample(number, empty=0.5) for number in range(200)]
    for sample in samples:
        assert (sample.caption == "") == (sample.name == EMPTY)
        if sample.name == EMPTY:
            assert (sample.picture == 90).all()
            assert sample.hole.any()
    assert 60 < sum(sample.name == EMPTY for sample in samples) < 140


def test_captions_name_what_is_there(pictures: Pictures) -> None:
    composer = Composer(pictures)
    captions: dict[int, set[str]] = {0: set(), 1: set()}
    for number in range(300):
        sample = composer.sample(number, empty=0)
        captions[sample.name].add(sample.caption)
    assert captions[0] == {
        *("red ball", "a red ball", "3d icon of red ball", "3d icon of a red ball"),
        *("cherries", "3d icon of cherries"),  # no article before a plural
    }
    assert captions[1] == {"drawing of apple", "drawing of an apple"}


def test_a_sample_depends_on_seed_and_number_only(pictures: Pictures) -> None:
    one, other = Composer(pictures, seed=1), Composer(pictures, seed=1)
    other.sample(3)
    other.picture(4)
    first, again, elsewhere = one.sample(7), other.sample(7), Composer(pictures, seed=2).sample(7)
    assert (first.picture == again.picture).all() and (first.hole == again.hole).all()
    assert first.caption == again.caption
    assert (first.picture != elsewhere.picture).any()
    assert (one.picture(7) == other.picture(7)).all()


def test_held_out_rows_never_come_up(pictures: Pictures) -> None:
    composer = Composer(pictures)
    for number in range(50):
        assert (composer.background(composer.random(number)) == 90).all()


def test_colours_are_shifted_without_touching_brightness() -> None:
    picture = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    shifted = data.shift_colours(np.random.default_rng(0), picture)
    assert shifted.max() == pytest.approx(200, abs=2)
    assert (shifted != picture).any()


def test_several_drawings_leave_one_held_out_and_an_emoji_never_is() -> None:
    apple = next(name for name in NAMES if name.word == "red apple")
    facts = [{"key": key} for key in (apple.emoji, *apple.drawings)]
    named, trained = data._name_cutouts(facts, held_out=False)
    _, hidden = data._name_cutouts(facts, held_out=True)
    assert named >= {fact["key"] for fact in facts}
    last = len(facts) - 1
    assert [row for row, _ in trained[NAMES.index(apple)]] == list(range(last))
    assert hidden[NAMES.index(apple)] == [(last, "clipart")]


def test_every_spelling_means_one_name() -> None:
    spellings = [spelling for name in NAMES for spelling in name.spellings]
    assert len(spellings) == len(set(spellings))
    assert len({name.emoji for name in NAMES}) == len(NAMES) >= 100
