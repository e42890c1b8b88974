"""Processes of a server on sockets of their own: which socket uvicorn is given when it looks at one of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict
from uvicorn import Config
from uvicorn.supervisors.multiprocess import Multiprocess

from ctr.serving.answering.metrics import SEVERAL_PROCESSES, ServerMetrics
from ctr.serving.server.processes import PAUSE_SECONDS, Processes, listening


@pytest.mark.parametrize("name", ["keep_subprocess_alive", "restart_all"])
def test_each_process_is_replaced_on_its_own_socket(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[Any] = [socket.socket() for _ in range(3)]
    try:
        supervisor = Processes(Config("none:app", workers=3), sockets)
        supervisor.processes = [SimpleNamespace(pid=pid, exitcode=None) for pid in (1, 2, 3)]  # type: ignore[misc]
        seen: list[tuple[Any, Any]] = []

        def replace(self: Any) -> None:
            seen.append((self.processes, self.sockets))
            connection = SimpleNamespace(close=lambda: None)
            self.processes[0] = SimpleNamespace(pid=10 + self.processes[0].pid, exitcode=None, child_conn=connection)

        act: Callable[[Any], None] = replace
        monkeypatch.setattr(Multiprocess, name, act)
        getattr(supervisor, name)()
        assert [of for _, of in seen] == [[one] for one in sockets]
        assert [process.pid for process in supervisor.processes] == [11, 12, 13]
        assert supervisor.sockets is sockets
    finally:
        for one in sockets:
            one.close()


def test_a_process_that_ends_while_it_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn asks it whether it lives; who holds the other end of the pipe too would wait for a minute."""

    class Beginning:
        pid = 1

        def __init__(self, *_: Any) -> None:
            self.parent_conn, self.child_conn = Pipe()

        def start(self) -> None:
            self.own_end = os.dup(self.child_conn.fileno())

    monkeypatch.setattr("ctr.serving.server.processes.Process", Beginning)
    with socket.socket() as one:
        supervisor = Processes(Config("none:app", workers=1), [one])
        supervisor.init_processes()
    (process,) = supervisor.processes
    assert not process.parent_conn.poll(0)
    os.close(process.own_end)  # type: ignore[attr-defined]
    assert process.parent_conn.poll(0)
    process.parent_conn.close()


@pytest.mark.parametrize("name", ["keep_subprocess_alive", "restart_all"])
def test_nor_is_one_that_replaces_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[Any] = []

    def replace(self: Any) -> None:
        parent_conn, child_conn = Pipe()
        began.append(os.dup(child_conn.fileno()))  # its own end, which its process holds
        self.processes[0] = SimpleNamespace(pid=2, exitcode=None, parent_conn=parent_conn, child_conn=child_conn)

    act: Callable[[Any], None] = replace
    monkeypatch.setattr(Multiprocess, name, act)
    with socket.socket() as one:
        supervisor = Processes(Config("none:app", workers=1), [one])
        supervisor.processes = [SimpleNamespace(pid=1, exitcode=-9)]  # type: ignore[list-item]
        getattr(supervisor, name)()
    (process,) = supervisor.processes
    assert not process.parent_conn.poll(0)
    os.close(began[0])
    assert process.parent_conn.poll(0)
    process.parent_conn.close()


def test_one_that_ends_as_soon_as_it_begins_is_begun_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beginning takes a core for a second, which those that answer need."""
    now, begun = [100.0], list[float]()
    monkeypatch.setattr("ctr.serving.server.processes.time", SimpleNamespace(monotonic=lambda: now[0]))

    def replace(self: Any) -> None:
        if self.processes[0].exitcode is not None:
            begun.append(now[0])
            self.processes[0] = SimpleNamespace(pid=2, exitcode=4, child_conn=SimpleNamespace(close=lambda: None))

    act: Callable[[Any], None] = replace
    monkeypatch.setattr(Multiprocess, "keep_subprocess_alive", act)
    with socket.socket() as one:
        supervisor = Processes(Config("none:app", workers=1), [one])
        supervisor.processes = [SimpleNamespace(pid=1, exitcode=-9)]  # type: ignore[list-item]
        for moment in (0.0, 0.5, PAUSE_SECONDS - 0.5, PAUSE_SECONDS, PAUSE_SECONDS + 0.5):
            now[0] = 100.0 + moment
            supervisor.keep_subprocess_alive()
    assert begun == [100.0, 100.0 + PAUSE_SECONDS]


@pytest.mark.parametrize(("pid", "exitcode", "ends"), [(1, 4, True), (1, 1, False), (1, -9, False), (7, 4, False)])
def test_all_end_where_one_of_the_first_could_not_make_its_app(
    pid: int, exitcode: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash, or a later one that finds a broken bundle, is no reason for the others to stop answering."""
    monkeypatch.setattr(Multiprocess, "keep_subprocess_alive", lambda self: None)
    supervisor = Processes(Config("none:app", workers=2), [socket.socket(), socket.socket()])
    try:
        supervisor._first = {1, 2}
        supervisor.processes = [
            SimpleNamespace(pid=pid, exitcode=exitcode),
            SimpleNamespace(pid=2, exitcode=None),
        ]  # type: ignore[list-item]
        supervisor.keep_subprocess_alive()
        assert supervisor.should_exit.is_set() == ends
        assert supervisor.failed == (exitcode if ends else 0)
    finally:
        for one in supervisor._own:
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


def said(folder: Path, mode: str, pid: int, gauge: str, value: float) -> None:
    """What a process said of itself, as prometheus_client keeps it."""
    kept = MmapedDict(str(folder / f"gauge_{mode}_{pid}.db"))
    kept.write_value(json.dumps([gauge, gauge, {}, "help"], sort_keys=True), value, 1.0)
    kept.close()


def told(name: str) -> list[float]:
    lines = ServerMetrics().text().decode().splitlines()
    return [float(line.split()[1]) for line in lines if line.startswith(f"{name} ")]


def test_a_process_that_ended_leaves_no_age_and_no_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, day = time.time(), 86_400.0
    for pid, days, waiting in ((7, 3, 5), (8, 1, 2)):
        said(tmp_path, "livemin", pid, "quadrank_model_created_seconds", now - days * day)
        said(tmp_path, "livemin", pid, "quadrank_counters_newest_seconds", now - days * day)
        said(tmp_path, "livesum", pid, "quadrank_waiting", waiting)
    monkeypatch.setenv(SEVERAL_PROCESSES, str(tmp_path))
    # Of all processes, whichever is asked, and as of now.
    assert told("quadrank_model_age_seconds") == [pytest.approx(3 * day, abs=60)]
    assert told("quadrank_waiting") == [7]
    supervisor = Processes(Config("none:app", workers=2), [])
    # The first ended, and waits to be begun again.
    supervisor.processes = [SimpleNamespace(pid=pid, exitcode=ended) for pid, ended in ((7, 4), (8, None))]  # type: ignore[misc]
    monkeypatch.setattr(Multiprocess, "keep_subprocess_alive", lambda self: None)
    supervisor.keep_subprocess_alive()
    assert told("quadrank_model_age_seconds") == [pytest.approx(day, abs=60)]
    assert told("quadrank_counters_age_seconds") == [pytest.approx(day, abs=60)]
    assert told("quadrank_waiting") == [2]


def test_every_gauge_of_several_processes_is_of_those_that_live(tmp_path: Path) -> None:
    code = "from ctr.serving.answering.metrics import ServerMetrics; ServerMetrics()"
    environment = os.environ | {SEVERAL_PROCESSES: str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    gauges = {path.name.rpartition("_")[0] for path in tmp_path.glob("gauge_*")}
    assert gauges == {"gauge_livesum", "gauge_livemax", "gauge_livemin"}
