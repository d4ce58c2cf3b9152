"""The allocator keeps blocks while calls are under way and is set back afterwards; others are left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from retouch.models.prepared import allocator
from retouch.models.prepared.allocator import giving_back, keeping_blocks


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
        with keeping_blocks():
            entered.set()
            may_leave.wait(10)

    other = threading.Thread(target=call)
    with keeping_blocks():
        kept = list(libc.told)
        other.start()
        assert entered.wait(10)
        with keeping_blocks():
            pass
    assert libc.told == kept and not libc.trims, "the other thread's call is still under way"
    may_leave.set()
    other.join()
    assert {parameter for parameter, _ in kept} <= {parameter for parameter, _ in libc.told[len(kept) :]}
    assert libc.trims == 1


def test_giving_back_for_a_while(libc: Libc) -> None:
    with giving_back():
        assert not libc.told, "nobody keeps anything"
    with keeping_blocks():
        kept = dict(libc.told)
        with giving_back():
            assert libc.trims == 1 and dict(libc.told) != kept
        assert {parameter: dict(libc.told)[parameter] for parameter in kept} == kept
    after = dict(libc.told)
    with keeping_blocks():
        pass
    assert dict(libc.told) == after, "it ends as it does without"


def test_a_call_that_fails_gives_back(libc: Libc) -> None:
    with pytest.raises(ZeroDivisionError), keeping_blocks():
        raise ZeroDivisionError
    assert libc.trims == 1


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_settings_of_the_environment_stand(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert allocator._glibc() is None
    with keeping_blocks():
        assert allocator._calls == 0


@pytest.mark.usefixtures("asked_anew")
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator._glibc() is None


IN_A_PROCESS = """
import torch
from retouch.models.prepared.allocator import keeping_blocks

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096

size = 2**26
before = resident()
with keeping_blocks():
    torch.ones(size)
    assert resident() > before + 3 * size, "it was freed, and stays with the process"
assert resident() < before + size
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="not glibc, or the environment has settings for it")
def test_memory_goes_back_at_the_end() -> None:
    subprocess.run([sys.executable, "-c", IN_A_PROCESS], check=True)
