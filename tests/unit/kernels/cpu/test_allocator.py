"""The allocator keeps blocks while calls are under way and is set back afterwards; others are left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from retouch.kernels.cpu import allocator
from retouch.kernels.cpu.allocator import keeping_memory, releasing_memory


class Libc:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.trims = 0

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    found = Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: found)
    return found


@pytest.fixture
def asked_anew() -> Iterator[None]:
    allocator._glibc.cache_clear()
    yield
    allocator._glibc.cache_clear()


def test_the_last_of_several_calls_gives_back(libc: Libc) -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def call() -> None:
        with keeping_memory():
            entered.set()
            may_leave.wait(10)

    other = threading.Thread(target=call)
    with keeping_memory():
        kept = list(libc.told)
        other.start()
        assert entered.wait(10)
        with keeping_memory():
            pass
    assert libc.told == kept and not libc.trims, "the other thread's call is still under way"
    may_leave.set()
    other.join()
    assert {parameter for parameter, _ in kept} <= {parameter for parameter, _ in libc.told[len(kept) :]}
    assert libc.trims == 1


def test_giving_back_for_a_while(libc: Libc) -> None:
    with releasing_memory():
        assert not libc.told, "nobody keeps anything"
    with keeping_memory():
        kept = dict(libc.told)
        with releasing_memory():
            assert libc.trims == 1 and dict(libc.told) != kept
        assert {parameter: dict(libc.told)[parameter] for parameter in kept} == kept
    after = dict(libc.told)
    with keeping_memory():
        pass
    assert dict(libc.told) == after, "it ends as it does without"


def test_a_call_that_fails_gives_back(libc: Libc) -> None:
    with pytest.raises(ZeroDivisionError), keeping_memory():
        raise ZeroDivisionError
    assert libc.trims == 1


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_settings_of_the_environment_stand(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert allocator._glibc() is None
    with keeping_memory():
        assert allocator._calls == 0


def test_the_environment_switches_it_off(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_KEEP_MEMORY", "0")
    with keeping_memory():
        assert allocator._calls == 0
    assert not libc.told
    monkeypatch.setenv("RETOUCH_KEEP_MEMORY", "1")
    with keeping_memory():
        assert allocator._calls == 1


@pytest.mark.usefixtures("asked_anew")
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator._glibc() is None


IN_A_PROCESS = """
import torch
from retouch.kernels import keeping_memory

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096

size = 2**26
before = resident()
with keeping_memory():
    torch.ones(size)
    assert resident() > before + 3 * size, "it was freed, and stays with the process"
assert resident() < before + size
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="not glibc, or the environment has settings for it")
def test_memory_goes_back_at_the_end() -> None:
    subprocess.run([sys.executable, "-c", IN_A_PROCESS], check=True)
