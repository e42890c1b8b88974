"""Processes of a server on sockets of their own: which socket uvicorn is given when it looks at one of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.supervisors.multiprocess import Multiprocess

from ctr.serving.server.processes import Processes


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
