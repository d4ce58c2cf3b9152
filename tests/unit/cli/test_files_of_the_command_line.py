from __future__ import annotations

import os
from pathlib import Path

import pytest

from retouch.cli.files import check_targets, default_name, series, written
from retouch.errors import InputError


def test_the_default_name_is_the_first_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_name("/elsewhere/cat.jpg", "erase") == Path("cat-erase.png")
    Path("cat-erase.png").touch()
    Path("cat-erase-2.png").touch()
    assert default_name("cat.jpg", "erase") == Path("cat-erase-3.png")
    assert default_name("https://host/a/cat.webp?size=2", "mask") == Path("cat-mask.png")
    assert default_name("data:image/png;base64,AAAA", "mask") == Path("photo-mask.png")


def test_variations_are_numbered() -> None:
    assert series(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert series(Path("a/b.png"), 3) == [Path("a/b-1.png"), Path("a/b-2.png"), Path("a/b-3.png")]


def test_what_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(b"mine")
    for path, word in (
        (there, "--overwrite"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.png", "is not there"),
    ):
        with pytest.raises(InputError, match=word):
            check_targets([path], overwrite=False)
    check_targets([there, tmp_path / "new.png"], overwrite=True)
    with pytest.raises(InputError, match="same file"):
        check_targets([there, there], overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written"):
        check_targets([tmp_path / "x.png"], overwrite=False)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.gif"
    with written(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".gif" and not target.exists()
    assert target.read_bytes() == b"half" and os.listdir(tmp_path) == ["x.gif"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_nothing_is_left_of_what_broke_off(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    target = tmp_path / "x.gif"
    target.write_bytes(b"old")
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected) as caught, written(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.gif"]
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)


def test_a_folder_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), written(tmp_path / "no" / "x.gif"):
        pass
