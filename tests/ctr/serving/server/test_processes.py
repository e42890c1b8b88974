"""Processes of a server on sockets of their own: which socket uvicorn is given when it looks at one of them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.supervisors.multiprocess import Multiprocess

from ctr.serving.server.processes import Processes, listening


@pytest.mark.parametrize("name", ["keep_subprocess_alive", "restart_all"])
def test_each_process_is_replaced_on_its_own_socket(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[Any] = [socket.socket() for _ in range(3)]
    try:
        supervisor = Processes(Config("none:app", workers=3), sockets)
        supervisor.processes = ["first", "second", "third"]  # type: ignore[list-item]
        seen: list[tuple[Any, Any]] = []

        def replace(self: Any) -> None:
            seen.append((self.processes, self.sockets))
            self.processes[0] = f"new {self.processes[0]}"

        act: Callable[[Any], None] = replace
        monkeypatch.setattr(Multiprocess, name, act)
        getattr(supervisor, name)()
        assert [of for _, of in seen] == [[one] for one in sockets]
        assert supervisor.processes == ["new first", "new second", "new third"]
        assert supervisor.sockets is sockets
    finally:
        for one in sockets:
            one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes share a socket")
def test_as_many_sockets_as_processes_listen_on_one_port() -> None:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    address = bound.getsockname()
    made = listening(bound, 3, backlog=8)
    try:
        assert len({one.fileno() for one in made}) == 3 and {one.getsockname() for one in made} == {address}
        assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in made)
    finally:
        for one in made:
            one.close()
    alone = socket.socket()
    alone.bind(("127.0.0.1", 0))
    (kept,) = listening(alone, 1, backlog=8)
    assert kept is alone
    alone.close()
