from __future__ import annotations

import socket

import pytest


def test_no_test_reaches_another_machine() -> None:
    with pytest.raises(pytest.fail.Exception, match="without a network"):
        socket.create_connection(("example.com", 80), timeout=1)
    with socket.socket() as one, pytest.raises(pytest.fail.Exception, match="without a network"):
        one.connect_ex(("192.0.2.1", 80))


def test_this_machine_may_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
