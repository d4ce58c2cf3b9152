"""Settings of every test: one thread, fixed seeds, no network outside this machine."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

# Set before huggingface_hub is imported, because it reads them once.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pytest
import torch

# The stand-in comes first: it also sets variables that huggingface_hub reads once.
pytest_plugins = [
    "hub_stand_in",
    "guide",
    "tiny_checkpoints",
    "tiny_checkpoints_xl",
    "tiny_checkpoints_kandinsky",
    "tiny_single_files",
]


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def known_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _is_here(host: Any) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Fail a test that connects to another machine, even if the library ignores an OSError."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked(host: Any) -> None:
        if not _is_here(host):
            pytest.fail(f"A test reached for {host!r}. Tests run without a network: use the hub stand-in.")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            checked(address[0])
        return connect(self, address)

    def connect_ex_here(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            checked(address[0])
        return connect_ex(self, address)

    def getaddrinfo_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        checked(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket.socket, "connect_ex", connect_ex_here)
        patch.setattr(socket, "getaddrinfo", getaddrinfo_here)
        yield
