from __future__ import annotations

import json
import os
import pickle
import re
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from retouch.checkpoints import tensors
from retouch.checkpoints.tensors import choose_weights, part_paths, read_tensors, write_tensors
from retouch.errors import CheckpointError, InputError

SHARDS = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
STATE = {
    "a.weight": torch.randn(4, 6),
    "a.bias": torch.randn(4),
    "b.weight": torch.randn(5, 6, dtype=torch.float16),
    "b.steps": torch.tensor(7),
}


@pytest.mark.parametrize(
    ("names", "variant", "expected"),
    [
        (["diffusion_pytorch_model.safetensors"], None, ["diffusion_pytorch_model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (["model.safetensors", "model.non_ema.safetensors"], "non_ema", ["model.non_ema.safetensors"]),
        (
            [*SHARDS, "diffusion_pytorch_model.safetensors.index.json"],
            None,
            ["diffusion_pytorch_model.safetensors.index.json", *SHARDS],
        ),
        # The names that diffusers and transformers give today.
        (
            ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json", *SHARDS],
            "fp16",
            ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"],
        ),
        # The names that they gave before.
        (
            ["model-00001-of-00001.fp16.safetensors", "model.safetensors.fp16.index.json"],
            "fp16",
            ["model.safetensors.fp16.index.json", "model-00001-of-00001.fp16.safetensors"],
        ),
        # All shards of a series are needed, also missing ones.
        (
            [SHARDS[1], "diffusion_pytorch_model.safetensors.index.json"],
            None,
            ["diffusion_pytorch_model.safetensors.index.json", *SHARDS],
        ),
        (
            ["model.safetensors", "diffusion_pytorch_model.safetensors"],
            None,
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["model.safetensors", "pytorch_model.bin", "model.onnx"], None, ["model.safetensors"]),
    ],
)
def test_weights_are_chosen_by_name(names: list[str], variant: str | None, expected: list[str]) -> None:
    assert list(choose_weights(names, "here", variant=variant).names) == expected


def test_a_variant_that_is_not_there_names_those_that_are() -> None:
    names = ["model.safetensors", "model.fp16.safetensors"]
    with pytest.raises(CheckpointError, match=r"here holds no variant='bf16'.*'fp16', none"):
        choose_weights(names, "here", variant="bf16")
    with pytest.raises(CheckpointError, match=r"without a variant.*'fp16'.*Pass variant="):
        choose_weights(names[1:], "here")


def test_pickled_weights_are_taken_only_by_name() -> None:
    names = ["pytorch_model.bin", "README.md"]
    for choice in (None, True):
        with pytest.raises(CheckpointError, match=r"only pickled weights.*use_safetensors=False"):
            choose_weights(names, "here", use_safetensors=choice)
    assert choose_weights(names, "here", use_safetensors=False).names == ("pytorch_model.bin",)
    # If they are requested, they come before safetensors; if there are none, safetensors are used.
    names.append("model.safetensors")
    assert choose_weights(names, "here", use_safetensors=False).names == ("pytorch_model.bin",)
    assert choose_weights(names[1:], "here", use_safetensors=False).names == ("model.safetensors",)


def test_a_folder_without_weights() -> None:
    with pytest.raises(CheckpointError, match="here holds no weights"):
        choose_weights(["config.json", "README.md", "random.safetensors"], "here")


def _sharded(folder: Path) -> Path:
    write_tensors(STATE, folder, max_shard_size=100, texts={"config.json": "{}"})
    return folder / "diffusion_pytorch_model.safetensors.index.json"


def _read(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    files = choose_weights(os.listdir(folder), str(folder), **options)
    return {name: tensor for path in part_paths(folder, files) for name, tensor in read_tensors(path)}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", 100])
def test_what_is_written_is_read_back(tmp_path: Path, variant: str | None, max_shard_size: Any) -> None:
    write_tensors(
        STATE, tmp_path, variant=variant, max_shard_size=max_shard_size, texts={"config.json": "{}"}
    )
    shards = [name for name in os.listdir(tmp_path) if "-of-" in name]
    assert bool(shards) == (max_shard_size == 100)
    state = _read(tmp_path, variant=variant)
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_the_index_decides_which_shards_are_read(tmp_path: Path) -> None:
    index = _sharded(tmp_path)
    save_file({"alien": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model-00009-of-00009.safetensors")
    assert _read(tmp_path).keys() == STATE.keys()

    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    (tmp_path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of {len(shards)}.*{re.escape(shards[1])}"):
        _read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../elsewhere.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
    ],
)
def test_a_broken_or_hostile_index(tmp_path: Path, text: str) -> None:
    _sharded(tmp_path).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        _read(tmp_path)


def _whole(folder: Path) -> Path:
    write_tensors(STATE, folder, texts={"config.json": "{}"})
    return folder / "diffusion_pytorch_model.safetensors"


def test_floats_become_the_dtype_and_integers_keep_theirs(tmp_path: Path) -> None:
    state = dict(read_tensors(_whole(tmp_path), dtype=torch.bfloat16))
    assert state["a.weight"].dtype == state["b.weight"].dtype == torch.bfloat16
    assert state["b.steps"].dtype == torch.int64
    assert torch.equal(state["a.weight"], STATE["a.weight"].bfloat16())


def test_one_tensor_at_a_time_is_held_in_the_file_s_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals: list[weakref.ref[torch.Tensor]] = []
    read = tensors._read_safetensors

    def watched(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read(path):
            assert all(original() is None for original in originals[:-1])
            originals.append(weakref.ref(tensor))
            yield name, tensor
            del tensor

    monkeypatch.setattr(tensors, "_read_safetensors", watched)
    state = dict(read_tensors(_whole(tmp_path), dtype=torch.float64))
    assert len(originals) == len(state) == len(STATE)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_no_part_of_a_file_stays_mapped(tmp_path: Path) -> None:
    """It would count as memory of the process, in addition to the weights in their own dtype."""
    path = _whole(tmp_path)
    state = dict(read_tensors(path))
    file = tensors.TensorFile(path)
    state |= {name: file.read(name) for name in file.shapes}
    del file
    assert state and str(path) not in Path("/proc/self/maps").read_text()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _truncated_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_truncated, "is cut short or damaged"),
        (_truncated_header, "is cut short or damaged"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "is a pickled file"),
        (lambda path: path.write_bytes(pickle.dumps({})), "is a pickled file"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "is a git-lfs pointer"),
        (lambda path: path.write_text("<!doctype html><title>Sorry</title>" * 3), "is a text file"),
        (lambda path: path.write_bytes(bytes(range(1, 200))), "is no safetensors file"),
        (lambda path: path.unlink(), "cannot be opened"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path: Path, harm: Callable[[Path], Any], says: str) -> None:
    path = _whole(tmp_path)
    harm(path)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} {says}"):
        list(read_tensors(path))


class _Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    torch.save({"a": torch.zeros(2), "b": _Hostile(trace)}, path)
    with pytest.raises(CheckpointError, match="no code in it was run"):
        list(read_tensors(path))
    assert not trace.exists()


def test_pickles_hold_tensors_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2)}, path)
    [(name, tensor)] = read_tensors(path, dtype=torch.float16)
    assert (name, tensor.dtype) == ("a", torch.float16)
    for content in ([torch.ones(2)], {"a": torch.ones(2), "epoch": 3}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="nothing else is accepted"):
            list(read_tensors(path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot be read as pickled weights"):
        list(read_tensors(path))


def test_saving_anew_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("not ours")
    write_tensors(STATE, tmp_path, variant="fp16", max_shard_size=100, texts={"config.json": "{}"})
    _sharded(tmp_path)
    others = {name for name in os.listdir(tmp_path) if "fp16" in name} | {"model.safetensors", "config.json"}
    _whole(tmp_path)
    assert set(os.listdir(tmp_path)) == others | {"diffusion_pytorch_model.safetensors"}
    _sharded(tmp_path)
    assert "diffusion_pytorch_model.safetensors" not in os.listdir(tmp_path)
    assert _read(tmp_path, variant="fp16").keys() == STATE.keys()


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _whole(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def full_disk(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        save_file(*args, **options)

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        _sharded(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    weights = _whole(tmp_path)
    (tmp_path / "other").touch()
    assert stat.S_IMODE(weights.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_variant_must_fit_into_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant='\.\./x'"):
        write_tensors(STATE, tmp_path, variant="../x", texts={})


def test_a_large_file_is_opened_anew_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_OPEN_ANEW_AFTER", 0)
    opened = []
    original = safetensors.safe_open

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(safetensors, "safe_open", counted)
    state = dict(read_tensors(_whole(tmp_path)))
    assert len(opened) == len(STATE)
    assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in STATE.items())
