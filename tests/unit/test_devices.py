from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retouch import devices
from retouch.devices import available_devices, randn, resolve_device, resolve_dtype
from retouch.errors import DeviceError, InputError


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_ACCELERATORS", ("none",))


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    gpu = SimpleNamespace(is_available=lambda: True, device_count=lambda: count)
    monkeypatch.setattr(devices, "_ACCELERATORS", ("cuda",))
    monkeypatch.setattr(torch, "cuda", gpu)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "cpu:0"])
def test_the_cpu_is_always_there(device: Any) -> None:
    assert resolve_device(device) == torch.device("cpu")
    assert available_devices()[-1] == "cpu"


@pytest.mark.parametrize(
    ("count", "names"), [(1, ["cuda", "cpu"]), (3, ["cuda:0", "cuda:1", "cuda:2", "cpu"])]
)
def test_accelerators_are_listed_by_the_names_to_pass(
    monkeypatch: pytest.MonkeyPatch, count: int, names: list[str]
) -> None:
    _gpus(monkeypatch, count)
    assert available_devices() == names
    for name in names:
        assert resolve_device(name) == torch.device(name)
    with pytest.raises(DeviceError, match=rf"device='cuda:{count}'.*are {', '.join(names)}\. "):
        resolve_device(torch.device("cuda", count))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "meta", "gpu", "", 3.5, torch.device("xpu")])
def test_a_device_that_is_not_there(no_accelerator: None, device: Any) -> None:
    with pytest.raises(DeviceError, match=r"is not on this machine.*devices are cpu\. ") as caught:
        resolve_device(device)
    assert caught.value.parameter == "device"


def _cpu_with(monkeypatch: pytest.MonkeyPatch, *abilities: str) -> None:
    listing = {"architecture": "x86_64", "avx2": True, "amx_bf16": False, **dict.fromkeys(abilities, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listing)
    monkeypatch.setattr(devices, "_warned_of_float16", False)


@pytest.mark.parametrize("ability", ["avx512_fp16", "amx_fp16", "fp16_arith"])
def test_float16_stays_if_the_cpu_computes_it(monkeypatch: pytest.MonkeyPatch, ability: str) -> None:
    _cpu_with(monkeypatch, ability, "avx512_bf16")
    assert resolve_dtype("float16", "cpu") is torch.float16


@pytest.mark.parametrize(
    ("abilities", "instead"),
    [
        (["avx512_bf16"], torch.bfloat16),
        (["amx_bf16"], torch.bfloat16),
        (["bf16"], torch.bfloat16),
        ([], torch.float32),
    ],
)
def test_float16_on_another_cpu_warns_once(
    monkeypatch: pytest.MonkeyPatch, abilities: list[str], instead: torch.dtype
) -> None:
    _cpu_with(monkeypatch, *abilities)
    name = str(instead).removeprefix("torch.")
    with pytest.warns(UserWarning, match=rf"float16 was asked for.*{name} is used.*dtype={instead}"):
        assert resolve_dtype(torch.float16, "cpu") is instead
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_dtype(torch.float16, torch.device("cpu")) is instead
        assert resolve_dtype("float16") is instead


def test_an_older_torch_that_lists_no_abilities_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    _cpu_with(monkeypatch)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    with pytest.warns(UserWarning, match="float32 is used"):
        assert resolve_dtype(torch.float16) is torch.float32


@pytest.mark.parametrize("dtype", ["float32", "torch.float32", torch.float32])
def test_dtypes_by_name(dtype: Any) -> None:
    assert resolve_dtype(dtype, "cpu") is torch.float32
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16
    assert resolve_dtype("float16", "cuda") is torch.float16
    assert resolve_dtype(None, "cpu") is None


@pytest.mark.parametrize("dtype", ["fp8", "", torch.int8, torch.complex64, 16])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=r"float16, bfloat16, float32, float64") as caught:
        resolve_dtype(dtype, "cpu")
    assert caught.value.parameter == "dtype"


def test_noise_repeats_with_its_seed() -> None:
    first = randn((2, 3), torch.Generator().manual_seed(5))
    assert torch.equal(first, randn([2, 3], torch.Generator().manual_seed(5)))
    assert not torch.equal(first, randn((2, 3), torch.Generator().manual_seed(6)))
    assert first.dtype == torch.float32
    double = randn((2, 3), torch.Generator().manual_seed(5), dtype=torch.float64)
    assert double.dtype == torch.float64


def test_a_generator_for_each_picture_draws_that_picture_alone() -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    batch = randn((3, 4, 2), seeds)
    for seed, row in zip((1, 2, 3), batch, strict=True):
        assert torch.equal(row, randn((1, 4, 2), torch.Generator().manual_seed(seed))[0])


def test_a_cpu_generator_draws_on_the_cpu_for_any_device() -> None:
    # "meta" stands for an accelerator: nothing is computed there, but the generator advances.
    generator, twin = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert randn((2, 4), generator, "meta").device.type == "meta"
    randn((2, 4), twin)
    assert torch.equal(randn((2, 4), generator), randn((2, 4), twin))


def test_one_generator_in_a_list_is_that_generator() -> None:
    alone = randn((3, 4), torch.Generator().manual_seed(1))
    assert torch.equal(alone, randn((3, 4), [torch.Generator().manual_seed(1)]))


def test_as_many_generators_as_pictures() -> None:
    with pytest.raises(InputError, match=r"a list of 2.*3 pictures") as caught:
        randn((3, 4), [torch.Generator(), torch.Generator()])
    assert caught.value.parameter == "generator"


def test_a_generator_of_another_device() -> None:
    class Foreign(torch.Generator):
        device = torch.device("cuda")

    with pytest.raises(InputError, match=r"on cuda.*noise is for cpu") as caught:
        randn((1, 4), Foreign(), "cpu")
    assert caught.value.parameter == "generator"
