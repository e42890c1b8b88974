"""Several processes of one server, each with a listening socket of its own on the same port.

Of one socket that processes share, whichever wakes first takes all connections that wait: clients that keep their
connections, as a load balancer does, would then be served by one process while the others are idle. Of sockets of their
own, Linux gives each connection to one by a hash of its addresses.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from ctr.serving.answering.metrics import SEVERAL_PROCESSES
from features.errors import ConfigError, DataError, NumericalError, TryAgainError

LOOK_SECONDS = 0.2
PAUSE_SECONDS = 5.0  # between two beginnings of a process that ends at once: each takes a core for a second
EXPLAINED = {error.exit_code for error in (ConfigError, DataError, NumericalError, TryAgainError)}
log = logging.getLogger("uvicorn.error")


def listening(bound: socket.socket, processes: int, backlog: int) -> list[socket.socket]:
    """Sockets that listen where one was bound, one for each process; elsewhere than on Linux the one alone.

    Args:
        bound: not yet listening; it proved that no other server has the address. Closed if others take its place.
        processes: how many.
        backlog: connections that may wait on each.
    """
    if processes == 1 or sys.platform != "linux":
        bound.listen(backlog)
        return [bound]
    address, family = bound.getsockname(), bound.family
    bound.close()
    return [_listening(family, address, backlog) for _ in range(processes)]


def _listening(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(address)
    made.listen(backlog)
    made.set_inheritable(True)
    return made


class Processes(Multiprocess):
    """uvicorn's supervisor, whose processes have a socket each; one that died is replaced on the same socket.

    Their number stays: a socket without a process would keep its clients waiting. Where one of the first cannot make
    its app, no other could: all end, and `failed` is its exit code. A later one is tried again every `PAUSE_SECONDS`,
    while the others answer.

    Args:
        config: of all processes.
        sockets: one for each process, or one that they share.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._own = sockets if len(sockets) > 1 else sockets * self.processes_num
        self._first: set[int | None] = set()
        self._begun = [-math.inf] * len(self._own)  # monotonic seconds at which another took a place
        self.failed = 0

    def init_processes(self) -> None:
        """Start each on its own socket."""
        for own in self._own:
            process = Process(self.config, [own])
            process.start()
            _leave_to(process)
            self.processes.append(process)
        self._first = {process.pid for process in self.processes}

    def keep_subprocess_alive(self) -> None:
        """Replace those that ended or say nothing."""
        looked_at = list(self.processes)
        self._one_by_one(super().keep_subprocess_alive, self._ended_at_once)
        # One that ended before this look or during it: uvicorn has begun another in its place.
        for process in looked_at:
            if process.pid in self._first and process.exitcode in EXPLAINED:
                self.failed = int(process.exitcode)
                self.should_exit.set()

    def join_all(self) -> None:
        """Wait for all. A further SIGTERM or Ctrl-C goes on to them, and ends them at once."""
        for process in self.processes:
            while process.process.is_alive():
                process.process.join(LOOK_SECONDS)
                if self.signal_queue:
                    self.signal_queue.clear()
                    self._end_at_once()

    def _end_at_once(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGTERM)

    def restart_all(self) -> None:
        """Replace all, one after the other."""
        self._one_by_one(super().restart_all)

    def handle_ttin(self) -> None:
        """Would start one more process."""
        log.info("the number of processes stays as --processes says")

    def handle_ttou(self) -> None:
        """Would end one."""
        self.handle_ttin()

    def _ended_at_once(self, place: int) -> bool:
        ended = self.processes[place].exitcode is not None
        return ended and time.monotonic() < self._begun[place] + PAUSE_SECONDS

    def _one_by_one(self, act: Callable[[], None], passed_over: Callable[[int], bool] = lambda place: False) -> None:
        """Let uvicorn, which starts processes on `self.sockets`, look at one process and its socket at a time."""
        processes, sockets = self.processes, self.sockets
        places = [place for place in range(len(self._own)) if not passed_over(place)]
        try:
            for place in places:
                self.processes, self.sockets = [processes[place]], [self._own[place]]
                act()
                if self.processes[0] is not processes[place]:
                    processes[place] = self.processes[0]
                    self._begun[place] = time.monotonic()
                    _leave_to(processes[place])
        finally:
            self.processes, self.sockets = processes, sockets
        self._forget_dead()

    def _forget_dead(self) -> None:
        """Remove what processes that ended said of themselves: their age and their queue are nobody's any more."""
        folder = os.environ.get(SEVERAL_PROCESSES)
        if folder is None:
            return
        alive = {process.pid for process in self.processes if process.exitcode is None}
        dead = {int(file.stem.rpartition("_")[2]) for file in Path(folder).glob("gauge_live*_*.db")} - alive
        for pid in dead:
            mark_process_dead(pid, folder)


def _leave_to(process: Process) -> None:
    """Close the process's own end of the pipe here: where it ends, asking whether it lives then does too."""
    process.child_conn.close()
