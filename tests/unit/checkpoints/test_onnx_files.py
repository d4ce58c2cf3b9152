from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import tiny_eraser

from retouch.checkpoints.onnx_files import find_files, open_onnx
from retouch.errors import CheckpointError, DeviceError, InputError, OfflineError


def test_a_file_here_is_found_by_its_path(tmp_path: Path) -> None:
    path = tiny_eraser(tmp_path / "one.onnx", "lama")
    assert find_files(path) == find_files(str(path)) == [path]
    for name in (tmp_path / "none.onnx", "none.onnx", "./a/b/none.onnx", "a/none.onnx"):
        with pytest.raises(CheckpointError, match=r"is not there. A path, or 'org/name/file.onnx'"):
            find_files(name)


def test_a_file_of_the_hub_is_fetched_alone_and_once(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    tiny_eraser(tmp_path / "more" / "one.onnx", "lama")
    tiny_eraser(tmp_path / "other.onnx", "lama", 128)
    hub.add("org/nets", tmp_path)
    with pytest.raises(OfflineError):
        find_files("org/nets/more/one.onnx", local_files_only=True)
    (path,) = find_files("org/nets/more/one.onnx")
    assert path.read_bytes() == (tmp_path / "more" / "one.onnx").read_bytes()
    assert [Path(name).name for name in hub.files_sent] == ["one.onnx"]
    hub.forget()
    assert find_files("org/nets/more/one.onnx") == [path] and hub.requests == []
    with pytest.raises(CheckpointError, match=r"no file two.onnx. Its ONNX files: more/one.onnx, other.onnx"):
        find_files("org/nets/two.onnx")


def test_several_files_come_from_a_folder_or_a_repository(hub: Any, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx", "c.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    wanted = ["b.onnx", "a.onnx"]
    assert find_files(tmp_path, wanted) == [tmp_path / name for name in wanted]
    with pytest.raises(CheckpointError, match=r"has no d.onnx. It needs a.onnx, d.onnx"):
        find_files(tmp_path, ["a.onnx", "d.onnx"])
    hub.add("org/parts", tmp_path)
    assert [path.name for path in find_files("org/parts", wanted)] == wanted
    assert sorted(Path(name).name for name in hub.files_sent) == ["a.onnx", "b.onnx"]


def test_what_is_no_onnx_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be opened as an ONNX file"):
        open_onnx(path)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    path = tiny_eraser(tmp_path / "one.onnx", "lama")
    assert open_onnx(path, "cpu").get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match="onnxruntime runs ONNX files on the CPU"):
        open_onnx(path, "mps")


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'pip install "retouch\[onnx\]"'):
        open_onnx(tiny_eraser(tmp_path / "one.onnx", "lama"))
