from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retouch import CheckpointError
from retouch.checkpoints.profile import Known, Profile
from retouch.editing.options import Options

FRUIT = Profile(
    names=(
        Known("red apple", ("apple",), ("fruit",)),
        Known("teddy bear", ("teddy",)),
        Known("hat"),
        Known("chair", related=("sofa",)),
    )
)


def write(folder: Path, said: Any, names: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "retouch.json").write_text(json.dumps(said))
    if names is not None:
        (folder / "names.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("name", ["", "org/name", "missing.safetensors"])
def test_what_says_nothing_has_an_empty_profile(name: str) -> None:
    assert Profile.of(name) == Profile() and Profile().defaults_of("inpaint") == {}


def test_a_folder_is_read_and_only_what_it_points_to(tmp_path: Path) -> None:
    names = [{"word": "hat", "synonyms": ["cap"]}]
    folder = write(
        tmp_path / "one", {"defaults": {"all": {"steps": 5, "size": 64}, "erase": {"steps": 7}}}, names
    )
    profile = Profile.of(folder)
    assert profile.defaults_of("inpaint") == {"steps": 5, "size": 64}
    assert profile.defaults_of("erase") == {"steps": 7, "size": 64}
    assert profile.names == []
    write(folder, {"names": "names.json", "limits": ["no faces"], "square_crops": True})
    assert Profile.of(str(folder)) == Profile({}, True, ["no faces"], [Known("hat", ["cap"])])
    (folder / "retouch.json").unlink()
    assert Profile.of(folder) == Profile()


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ([], None),
        ({"stpes": 3}, None),
        ({"names": "names.json"}, {}),
        ({"names": "names.json"}, None),
        ({"names": "names.json"}, [{"name": "hat"}]),
    ],
)
def test_what_cannot_be_read_is_told(said: Any, names: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"retouch\.json") as caught:
        Profile.of(write(tmp_path / "folder", said, names))
    assert "\n" not in str(caught.value)
    assert caught.value.parameter == "name"


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a Red APPLE, on a table", ["red apple"]),
        ("apple", ["red apple"]),
        ("a teddy-bear with a hat.", ["teddy bear", "hat"]),
        ("a pineapple", []),
        ("what is that", []),
        ("a red hot apple", ["red apple"]),
        ("a red car", []),
        ("", []),
    ],
)
def test_names_are_found_as_whole_words(prompt: str, named: list[str]) -> None:
    assert FRUIT.named_in(prompt) == named


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("two apples", ["red apple"]),
        ("a tedy", ["teddy bear"]),
        ("some fruits", ["red apple"]),
        ("a leather sofa", ["chair"]),
        ("a zeppelin", []),
        ("a an the of", []),
        ("", []),
    ],
)
def test_near_names_by_meaning_and_by_spelling(prompt: str, near: list[str]) -> None:
    assert FRUIT.near(prompt) == near


def test_no_more_than_asked_for_and_none_twice() -> None:
    many = Profile(names=[Known(f"apple{index}", related=("fruit",)) for index in range(9)])
    assert many.near("fruit apple apples", count=3) == ["apple0", "apple1", "apple2"]


@pytest.mark.parametrize("verb", ["inpaint", "erase", "outpaint"])
def test_the_built_in_one_has_defaults_that_the_verbs_take(verb: str) -> None:
    profile = Profile.of("builtin")
    assert profile == Profile.of("builtin-regular") and profile.square_crops and profile.limits
    options = Options.of(**profile.defaults_of(verb))
    assert options.guidance_scale <= 4 and options.steps <= 30


def test_the_built_in_one_knows_everyday_names() -> None:
    profile = Profile.of("builtin")
    words = [known.word for known in profile.names]
    assert len(words) == len(set(words)) >= 100
    spellings = [spelling for known in profile.names for spelling in known.spellings]
    assert len(spellings) == len(set(spellings))
    for prompt in ("a cat", "a kitten", "a red apple", "car"):
        assert profile.named_in(prompt)
    for prompt in ("a castle", "an aple", "two dogs", "a sofa"):
        assert not profile.named_in(prompt) and profile.near(prompt)
