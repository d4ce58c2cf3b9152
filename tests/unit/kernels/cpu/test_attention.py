from __future__ import annotations

import gc
import importlib
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from torch import Tensor

from retouch.errors import InputError
from retouch.kernels.cpu import attention as native_attention
from retouch.kernels.cpu.attention import attention, attention_at, supports, torch_attention

LEVELS = native_attention.levels()
DTYPES = [torch.float32, torch.bfloat16]
needs_kernel = pytest.mark.skipif(not LEVELS, reason="the native kernel is not built")
every_level = pytest.mark.parametrize("level", LEVELS or ["none"])
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors(
    queries: int, keys: int, dim: int, dtype: torch.dtype, *, batch: int = 2, heads: int = 2, size: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values as a UNet has them: heads side by side, seen as (batch, heads, ...)."""
    generator = torch.Generator().manual_seed(queries + 7 * keys + 31 * dim)
    return tuple(  # type: ignore[return-value]
        (size * torch.randn(batch, tokens, heads, dim, generator=generator)).to(dtype).transpose(1, 2)
        for tokens in (queries, keys, keys)
    )


def exact(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query.double() @ key.double().transpose(-1, -2) * scale).softmax(-1)
    return weights @ value.double()


def error(result: Tensor, expected: Tensor) -> float:
    return (result.double() - expected).abs().max().item()


def check(result: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> None:
    """The result is laid out as promised, and as close to the exact one as torch's in the same dtype."""
    assert result.shape == query.shape
    assert result.dtype == query.dtype
    assert result.transpose(1, 2).is_contiguous()
    expected = exact(query, key, value, scale)
    theirs = error(F.scaled_dot_product_attention(query, key, value, scale=scale), expected)
    # Roundings fall differently, and torch's may happen to be exact: allowed is twice its error and two units
    # in the last place of the largest result.
    unit = torch.finfo(query.dtype).eps * expected.abs().max().item()
    assert error(result, expected) <= 2 * theirs + 2 * unit


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 24, 40, 64, 80, 104, 160, 512])
def test_heads_of_every_size(level: str, dtype: torch.dtype, dim: int) -> None:
    inputs = tensors(70, 261, dim, dtype)
    check(attention_at(level, *inputs), *inputs)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 7, 63, 64, 65, 130])
@pytest.mark.parametrize("keys", [1, 2, 77, 154, 192, 193, 385])
def test_any_number_of_tokens(level: str, dtype: torch.dtype, queries: int, keys: int) -> None:
    inputs = tensors(queries, keys, 40, dtype)
    check(attention_at(level, *inputs), *inputs)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_many_tokens_as_a_picture_has(level: str, dtype: torch.dtype) -> None:
    query, key, value = tensors(4096, 4096, 40, dtype, batch=1, heads=1)
    some = slice(1000, 1100)
    result = attention_at(level, query, key, value)
    check(result[:, :, some].clone(memory_format=torch.contiguous_format), query[:, :, some], key, value)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_any_strides(level: str, dtype: torch.dtype) -> None:
    batch, tokens, heads, dim = 3, 50, 2, 16
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(batch, tokens, 3 * heads * dim + 5, generator=generator).to(dtype)
    parts = fused[..., 3:-2].chunk(3, dim=-1)  # addresses that no vector register likes
    views = [part.unflatten(-1, (heads, dim)).transpose(1, 2) for part in parts]
    check(attention_at(level, *views), *views)

    plain = [view.contiguous() for view in views]
    assert torch.equal(attention_at(level, *plain), attention_at(level, *views))
    every_second = [view[:, :, ::2] for view in views]
    check(attention_at(level, *every_second), *every_second)
    shared = [views[0], views[1][:1].expand(3, -1, -1, -1), views[2][:, :1].expand(-1, heads, -1, -1)]
    check(attention_at(level, *shared), *shared)
    backwards = [view.transpose(0, 1) for view in views]
    check(attention_at(level, *backwards), *backwards)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_scale(level: str, dtype: torch.dtype, scale: float) -> None:
    query, key, value = tensors(20, 30, 40, dtype)
    inputs = (query / 4, key / 4, value)
    check(attention_at(level, *inputs, scale=scale), *inputs, scale=scale)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores_do_not_overflow(level: str, dtype: torch.dtype) -> None:
    query, key, value = tensors(20, 400, 40, dtype, size=1e15)
    result = attention_at(level, query, key, value)
    # At such scores one key takes all the weight, and scores of either sign are far beyond exp's range.
    winners = (query.double() @ key.double().transpose(-1, -2)).argmax(-1)
    winning = value.gather(2, winners[..., None].expand_as(result))
    torch.testing.assert_close(result, winning, rtol=2 * torch.finfo(dtype).eps, atol=0)


@needs_kernel
@every_level
def test_the_largest_score_may_come_last_or_first(level: str) -> None:
    query, key, value = tensors(3, 500, 40, torch.float32)
    rising = key * torch.linspace(0, 3, 500)[:, None]
    for keys in (rising, rising.flip(2)):
        check(attention_at(level, query, keys, value), query, keys, value)


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_where_it_is(level: str, dtype: torch.dtype) -> None:
    query, key, value = tensors(70, 80, 40, dtype)
    query[0, 1, 5] = math.nan
    result = attention_at(level, query, key, value)
    is_nan = result.isnan()
    assert is_nan[0, 1, 5].all()
    assert is_nan.sum() == 40


@needs_kernel
@every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(level: str, dtype: torch.dtype) -> None:
    inputs = tensors(1000, 77, 40, dtype)
    alone = attention_at(level, *inputs)
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)
        assert torch.equal(attention_at(level, *inputs), alone)


@needs_kernel
def test_called_from_several_threads_at_once() -> None:
    inputs = [tensors(200 + 64 * i, 77 + i, 40, DTYPES[i % 2]) for i in range(4)]
    expected = [attention_at(LEVELS[0], *each) for each in inputs]
    wrong = []

    def repeat(index: int) -> None:
        torch.set_num_threads(2)
        wrong.extend(
            index
            for _ in range(20)
            if not torch.equal(attention_at(LEVELS[0], *inputs[index]), expected[index])
        )

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_kernel
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory in use is read from /proc")
def test_memory_does_not_grow() -> None:
    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    inputs = tensors(64, 2000, 64, torch.float32)  # packed keys and values: 2 MB a call
    for _ in range(10):
        attention_at(LEVELS[0], *inputs)
    before = resident()
    for _ in range(100):
        attention_at(LEVELS[0], *inputs)
    assert resident() - before < 10e6


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_works_in_a_forked_process() -> None:
    code = """
import os, signal, torch
torch.set_num_threads(2)
from retouch.kernels.cpu.attention import attention_at, levels
tensors = [torch.ones(1, 8, 200, 40)] * 3
attention_at(levels()[0], *tensors)  # torch's threads are up
child = os.fork()
if child == 0:
    signal.alarm(20)  # threads that are waited for in vain
    result = attention_at(levels()[0], *tensors)
    os._exit(0 if all(x == 1 for x in result[0, :, :, 0].flatten().tolist()) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@needs_kernel
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"level": 99}, "no such level"),
        ({"threads": 0}, "threads"),
        ({"sizes": (1, 1, 0, 8, 8)}, "at least 1"),
        ({"sizes": (1, 1, 8, -8, 8)}, "at least 1"),
        ({"sizes": (1, 1, 8, 8, 7)}, "multiple of 8"),
        ({"sizes": (1, 1, 8, 8, 520)}, "up to 512"),
        ({"sizes": (2**35, 2**35, 8, 8, 8)}, "too large"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"query": (0, 0, 0, 0)}, "address"),
    ],
)
def test_the_kernel_refuses_what_it_cannot_compute(change: dict[str, object], fault: str) -> None:
    numbers = torch.zeros(64)
    place = (numbers.data_ptr(), 0, 0, 8)
    call = {"level": 0, "threads": 1, "scale": 1.0, "sizes": (1, 1, 8, 8, 8), "query": place} | change
    with pytest.raises(ValueError, match=fault):
        native_attention._kernel.attend(
            call["level"],
            False,
            call["threads"],
            call["scale"],
            call["sizes"],
            call["query"],
            place,
            place,
            place,
        )
    with pytest.raises(TypeError):
        native_attention._kernel.attend(0, False, 1, 1.0, (1, 1), place, place, place, place)


@needs_kernel
def test_too_little_memory_is_an_exception() -> None:
    place = (torch.zeros(64).data_ptr(), 0, 0, 0)
    with pytest.raises(MemoryError):
        native_attention._kernel.attend(
            0, False, 4096, 1.0, (1, 1, 2**30, 2**38, 512), place, place, place, place
        )


@needs_kernel
def test_supports_says_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention, "available", True)
    monkeypatch.setattr(native_attention, "_leaves_bfloat16", False)
    query, key, value = tensors(5, 6, 40, torch.float32)
    assert supports(query, key, value)
    assert supports(query.bfloat16(), key.bfloat16(), value.bfloat16())
    narrow = [part[..., :20] for part in (query, key, value)]
    for refused in (
        (query, key.bfloat16(), value),
        (query.half(), key.half(), value.half()),
        (query.double(), key.double(), value.double()),
        (query[0], key[0], value[0]),
        (query, key[:, :1], value[:, :1]),  # torch would repeat the heads
        (query, key, value[:, :, :5]),
        (query[:, :, :0], key, value),
        (query, key[:, :, :0], value[:, :, :0]),
        tuple(narrow),
        (query.transpose(2, 3), key.transpose(2, 3), value.transpose(2, 3)),  # not contiguous along dim
        (query.to("meta"), key.to("meta"), value.to("meta")),
        (query.clone().requires_grad_(), key, value),
    ):
        assert not supports(*refused)
    with torch.no_grad():
        assert supports(query.clone().requires_grad_(), key, value)
    monkeypatch.setattr(native_attention, "available", False)
    assert not supports(query, key, value)


def test_torch_computes_bfloat16_where_the_processor_has_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention, "available", True)
    monkeypatch.setattr(native_attention, "_leaves_bfloat16", True)
    for dtype, ours in ((torch.float32, True), (torch.bfloat16, False)):
        rows = torch.ones(1, 2, 16, 40, dtype=dtype)
        assert native_attention.supports(rows, rows, rows) is ours
    assert native_attention._level is None or "AMX" in native_attention.description()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [20, 40])
@pytest.mark.parametrize("queries", [3, 300])
def test_attention_answers_whatever_computes_it(dtype: torch.dtype, dim: int, queries: int) -> None:
    inputs = tensors(queries, 77, dim, dtype)
    check(attention(*inputs), *inputs)
    check(torch_attention(*inputs), *inputs)
    for scale in (-0.5, 0.0, 0.5):
        check(attention(*inputs, scale=scale), *inputs, scale=scale)


@pytest.mark.parametrize("scale", [None, 0.2])
def test_torch_in_chunks(monkeypatch: pytest.MonkeyPatch, scale: float | None) -> None:
    monkeypatch.setattr(native_attention, "_has_bfloat16_vectors", lambda: True)
    query, key, value = tensors(600, 300, 40, torch.bfloat16, heads=3)
    assert native_attention._is_faster_in_chunks(query, key, value)
    result = torch_attention(query, key, value, scale=scale)
    assert result.transpose(1, 2).is_contiguous()
    expected = exact(query, key, value, scale)
    # Scores and weights are rounded to bfloat16 on the way, which torch's own attention does not do.
    theirs = error(F.scaled_dot_product_attention(query, key, value, scale=scale), expected)
    assert error(result, expected) < 6 * theirs
    assert not native_attention._is_faster_in_chunks(*tensors(600, 77, 40, torch.bfloat16))
    assert not native_attention._is_faster_in_chunks(*tensors(600, 300, 40, torch.float32))


def test_gradients() -> None:
    inputs = [part.clone().requires_grad_() for part in tensors(70, 77, 40, torch.float32)]

    def gradients(compute: Callable[..., Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(compute(*inputs).square().sum(), inputs))

    assert_close(gradients(attention), lambda: gradients(F.scaled_dot_product_attention))


def test_tracing_records_an_operation_rather_than_its_result() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    first, second = tensors(9, 9, 16, torch.float32), tensors(9, 9, 16, torch.float32, size=2)
    for mode in ("real", "fake"):
        traced = make_fx(lambda *parts: attention(*parts), tracing_mode=mode)(*first)
        assert_close(traced(*second), lambda: attention(*second))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(part) for part in first]
        assert attention(*fake).shape == first[0].shape


@needs_kernel
def test_the_operation_is_declared_to_torch_as_it_is() -> None:
    inputs = tensors(9, 13, 16, torch.float32)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(native_attention._operation, (*inputs, LEVELS[0], 0.25), test_utils=checks)


def test_compiling_makes_one_graph() -> None:
    inputs = tensors(9, 77, 16, torch.float32)
    compiled = torch.compile(lambda *parts: 2 * attention(*parts), fullgraph=True, backend="eager")
    assert_close(compiled(*inputs), lambda: 2 * attention(*inputs))


@pytest.fixture
def reloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards the module is as it was."""
    yield
    monkeypatch.undo()
    importlib.reload(native_attention)


def test_without_the_kernel(reloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETOUCH_ATTENTION", raising=False)
    monkeypatch.setitem(sys.modules, "retouch.kernels.cpu._flash_attention", None)
    importlib.reload(native_attention)
    assert not native_attention.available
    assert native_attention.levels() == ()
    assert "torch: the native kernel is not built" in native_attention.description()
    inputs = tensors(70, 77, 40, torch.float32)
    assert not native_attention.supports(*inputs)
    check(native_attention.attention(*inputs), *inputs)
    monkeypatch.setenv("RETOUCH_ATTENTION", "avx2")
    with pytest.raises(InputError, match=r"RETOUCH_ATTENTION.*Accepted here: torch"):
        importlib.reload(native_attention)


@pytest.mark.parametrize("level", [*LEVELS, "torch"])
def test_the_environment_chooses(level: str, reloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_ATTENTION", level)
    importlib.reload(native_attention)
    assert native_attention.available == (level != "torch")
    inputs = tensors(70, 77, 40, torch.bfloat16)
    assert native_attention.supports(*inputs) == (level != "torch")
    if level == "torch":
        assert "RETOUCH_ATTENTION" in native_attention.description()
    else:
        assert "kernel" in native_attention.description()
        assert torch.equal(native_attention.attention(*inputs), attention_at(level, *inputs))


def test_an_unknown_level_is_refused(reloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_ATTENTION", "fast")
    with pytest.raises(InputError, match=r"RETOUCH_ATTENTION='fast' .*torch"):
        importlib.reload(native_attention)


COMPILER = shutil.which("c++")
INCLUDE = Path(sysconfig.get_path("include"))


@pytest.mark.skipif(
    COMPILER is None or not (INCLUDE / "Python.h").is_file(), reason="nothing to compile with"
)
def test_the_source_compiles() -> None:
    """The kernel is an optional part of the package, so an install without it says little."""
    source = Path(native_attention.__file__).with_name("flash_attention.cpp")
    assert COMPILER is not None
    command = [COMPILER, "-std=gnu++17", "-fsyntax-only", "-I", str(INCLUDE), str(source)]
    subprocess.run(command, check=True)
