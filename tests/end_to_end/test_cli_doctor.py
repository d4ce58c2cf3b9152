"""`retouch doctor`: the report, the self-test, and what it says when that fails."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import answered, done, refused, retouch

from retouch.cli import doctor as module
from retouch.cli.self_test import SelfTest, run_self_test
from retouch.images.photo import Photo
from retouch.kernels import description


def test_the_report(hub: Any) -> None:
    report = answered("doctor", "--device", "cpu", "--dtype", "float32")
    assert report["versions"]["torch"] == torch.__version__ and report["versions"]["rich"]
    assert report["compute"]["used"] == "cpu" and "cpu" in report["compute"]["devices"]
    assert report["compute"]["precision"] == "float32" and report["compute"]["cores"] >= 1
    assert report["compute"]["kernels"] == description()
    assert report["memory"]["main_bytes"] > 1e8 and report["cache"]["disk_free_bytes"] > 0
    assert report["cache"]["hub"] == hub.url and report["cache"]["logged_in"] is False
    assert report["self-test"]["passed"] is True and report["self-test"]["seconds"] < 10
    assert hub.requests == []


def test_the_text_has_it_all() -> None:
    text = done("doctor", "--device", "cpu").stdout
    for word in ("versions", "precision", "main", "folder", "attention", "self-test", "yes"):
        assert word in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_test_passes_in_each_precision(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    assert run_self_test(torch.device("cpu"), dtype).fault is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_self_test_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def painted_nothing(self: Photo, *args: Any) -> Any:
        return self.image

    def painted_all(self: Photo, *args: Any) -> Any:
        return Photo.open(255 - np.asarray(self.image)).image

    monkeypatch.setattr(Photo, "with_painted", painted_nothing)
    assert run_self_test(torch.device("cpu"), torch.float32).fault == "the masked area was not repainted"
    monkeypatch.setattr(Photo, "with_painted", painted_all)
    assert run_self_test(torch.device("cpu"), torch.float32).fault == "pixels outside the mask changed"


@pytest.mark.parametrize("failing", [lambda *_: SelfTest(0.1, "broken"), lambda *_: 1 / 0])
def test_a_failed_self_test_exits_1_after_the_report(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retouch.cli.self_test.run_self_test", failing)
    result = retouch("doctor", "--device", "cpu", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["self-test"]["passed"] is False
    assert report["self-test"]["fault"] in result.stderr and "cpu" in result.stderr


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert "cpu" in refused("doctor", "--device", "cuda:77")


def test_it_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    monkeypatch.setattr(module, "_main_memory", lambda: (8 * 10**9, 2 * 10**9))
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    lines = retouch("doctor", "--device", "cpu").stderr.splitlines()
    for word in ("HF_HOME", "main memory", "CUDA"):
        assert sum(word in line for line in lines) == 1


def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (10**9, (1 + place.index) * 10**10))
    place = torch.device("cuda", 1)
    compute = module._compute(place, torch.float16)
    assert compute["devices"] == ["cuda:0 (card 0)", "cuda:1 (card 1)", "cpu"]
    assert compute["precision"] == "float16" and "flash" in compute["kernels"]
    memory = module._memory(place)
    assert (memory["device_free_bytes"], memory["device_bytes"]) == (10**9, 2 * 10**10)
