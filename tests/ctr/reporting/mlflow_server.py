"""A real `mlflow server` on loopback, which a test starts and stops, and a cable to it that a test can pull."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

SECONDS_TO_START = 200
FIRST_CALLS = ("experiments/search?max_results=1", "registered-models/search?max_results=1")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class MlflowServer:
    """Keeps its store in a folder; killing it is an outage, and starting it again brings everything back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        application = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        artifacts = ["--artifacts-destination", str(self.folder / "server-artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *application, *store, *artifacts],
                stdout=log,
                stderr=log,
                env=os.environ | quiet,
                start_new_session=True,
            )
        until = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                # A busy machine answers the first calls of a fresh server later than we wait for our first contact.
                for call in FIRST_CALLS:
                    urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/{call}", timeout=120).close()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """End it at once, with the workers that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None


class Cable:
    """A port that leads to another; while it is pulled, connections are refused, and those that are open end.

    `artifacts` is the HTTP status that requests of artifacts get meanwhile instead of an answer of the server, as where
    the store behind it is away or refuses; 0 leaves them without any answer. None lets them through.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts: int | None = None
        self._listening: socket.socket | None = None
        self._open: list[socket.socket] = []

    def plug_in(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def pull(self) -> None:
        if self._listening is not None:
            for end in (self._listening, *self._open):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._listening, self._open = None, []

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._open += [near, far]
            for work, source, sink in ((self._ask, near, far), (_copy, far, near)):
                threading.Thread(target=work, args=(source, sink), daemon=True).start()

    def _ask(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while data := near.recv(65536):
                if self.artifacts is not None and b"/mlflow-artifacts/" in data.partition(b"\r\n")[0]:
                    if self.artifacts:
                        _answer(near, self.artifacts)
                    return
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _answer(near: socket.socket, status: int) -> None:
    near.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while near.recv(65536):  # the body: a client that is cut off in it hears no answer
            pass
    near.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    near.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
