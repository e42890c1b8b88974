"""The server as processes: it answers, follows SIGTERM, and shares its socket and metrics with others."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.served import Served
from ctr.serving.server.run import check_address, run_server
from features.errors import ConfigError, DataError
from tests.ctr.serving.shop import REQUEST

START_SECONDS = 240
MOST_MIB = 250  # without the item table


@pytest.fixture
def start(bundles: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts a server on a free port; returns its process and its address."""
    servers: list[subprocess.Popen[str]] = []

    def started(*options: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "pipelines", "serve", "--bundle", str(bundles / "CURRENT"), "--port", "0"]
        server = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        servers.append(server)
        assert server.stdout is not None
        ready, address = 0, ""
        for line in server.stdout:
            if found := re.search(r"running on (http://127.0.0.1:\d+)", line):
                address = found[1]
            ready += "startup complete" in line
            if address and ready >= (int(options[1]) if options[:1] == ("--processes",) else 1):
                return server, address
        raise AssertionError(f"the server ended with {server.wait()}")

    yield started
    for server in servers:
        if server.poll() is None:
            server.terminate()
            server.wait(START_SECONDS)


@pytest.mark.timeout(START_SECONDS)
def test_several_processes_offer_no_rollback_of_one_of_them(start, tmp_path):
    (tmp_path / "token").write_text("t")
    _, address = start("--processes", "2", "--token-file", str(tmp_path / "token"))
    request = urllib.request.Request(f"{address}/v1/rollback", b"", {"Authorization": "Bearer t"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 404


def post(address: str, request: dict[str, Any]) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/v1/rank", json.dumps(request).encode(), timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.mark.timeout(START_SECONDS)
def test_it_answers_and_ends_with_0_on_sigterm_though_a_body_does_not_come(start):
    server, address = start("--set", "serve.receive_seconds=3")
    assert post(address, REQUEST)["model_version"] == "first"
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), 30) as half:
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\nexpect: 100-continue\r\n\r\n{")
        assert b"100 Continue" in half.recv(100), "the request is being read"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert server.stdout is not None and "Traceback" not in server.stdout.read()


@pytest.mark.timeout(START_SECONDS)
def test_a_request_over_one_connection_too_many_is_answered_503(start):
    _, address = start("--set", "serve.max_connections=2")
    host = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
    full = pytest.raises(urllib.error.HTTPError, match="503")
    with socket.create_connection(host, 30), socket.create_connection(host, 30), full:
        post(address, REQUEST)
    while True:  # until the server has seen that they were closed
        try:
            assert post(address, REQUEST)["state"] == "ok"
            break
        except urllib.error.HTTPError:
            time.sleep(0.05)


@pytest.mark.timeout(START_SECONDS)
def test_every_process_ends_connections_on_which_no_head_comes(start):
    _, address = start("--processes", "2", "--set", "serve.receive_seconds=2")
    host = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
    # Spread by chance, one process gets all 16 once in 30,000 times.
    clients = [socket.create_connection(host, 30) for _ in range(16)]
    for client in clients[::2]:
        client.sendall(b"POST /v1/rank HTTP/1.1\r\nhost")
    assert post(address, REQUEST)["state"] == "ok"
    for client in clients:
        with suppress(ConnectionResetError):  # ended before its half of a head came
            assert client.recv(1000) == b""
        client.close()
    assert post(address, REQUEST)["state"] == "ok"


@pytest.mark.timeout(START_SECONDS)
def test_processes_share_a_socket_and_their_metrics(start):
    _, address = start("--processes", "2")
    for _ in range(10):
        post(address, REQUEST)

    def counted() -> str:
        with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return next(line for line in lines if line.startswith("quadrank_candidates_total "))

    latest = time.monotonic() + 30
    while counted() != "quadrank_candidates_total 50.0":  # a request is counted once its answer has left
        assert time.monotonic() < latest, counted()
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.timeout(START_SECONDS)
def test_a_server_that_has_ranked_is_small_and_holds_no_training(start):
    server, address = start()
    assert post(address, REQUEST)["state"] == "ok"
    held = Served(int(address.rsplit(":", 1)[1]), server.pid)
    assert held.is_ready()
    assert held.beside_table_mib() < MOST_MIB
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "/onnxruntime/" in mapped
    assert not re.search(r"/(torch|pandas|sklearn|scipy|numba)/", mapped)


def test_nothing_of_a_server_imports_what_trains():
    code = "import sys, pipelines.cli.serving, pipelines.serving.serve; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ctr.serving.server.app" in loaded
    assert not {"torch", "pandas", "mlflow", "optuna", "sklearn", "scipy", "matplotlib"} & set(loaded)


def test_who_is_told_the_port_can_call_it_at_once():
    class ReachedError(Exception):
        pass

    def announce(port: int) -> None:
        socket.create_connection(("127.0.0.1", port), 30).close()
        raise ReachedError

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ReachedError):
            run_server(lambda: None, "127.0.0.1", 0, 1, announce)
    finally:
        signal.signal(signal.SIGTERM, before)


PAUSES = """
import gc, sys
from ctr.serving.server import run
class Server:
    def __init__(self, *settings): self.loaded = [[] for _ in range(1000)]
    def app(self): return self
import ctr.serving.server.app as module
module.Server = Server
app = run.MakeApp(None, None, None)()
print(sys.getswitchinterval() <= 0.001, gc.get_freeze_count() > 1000)
"""


def test_a_process_that_answers_keeps_its_own_pauses_short():
    found = subprocess.run([sys.executable, "-c", PAUSES], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 2


UNHEARD = """
import os
from ctr.serving.answering.metrics import SEVERAL_PROCESSES
from ctr.serving.server import run
from features.errors import DataError
class Server:
    def __init__(self, *settings): raise DataError("the bundle has changed")
import ctr.serving.server.app as module
module.Server = Server
os.environ[SEVERAL_PROCESSES] = "folder"
run.MakeApp(None, None, None)()
"""


def test_a_process_whose_errors_nobody_reads_ends_with_their_code():
    """With that of a crash it would be begun again for ever."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", UNHEARD], stderr=writing)
    os.close(writing)
    assert ended.returncode == DataError.exit_code


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(host):
    check_address(host, public=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "ranker.example"])
def test_an_address_that_others_reach_needs_one(host):
    with pytest.raises(ConfigError, match="--public"):
        check_address(host, public=False)
    check_address(host, public=True)


def test_an_address_that_is_taken_is_an_error_of_its_own():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^--host 127\.0\.0\.1 --port {port}: .*Address already in use.* another"
        ):
            run_server(lambda: None, "127.0.0.1", port, 1)


def test_a_host_that_has_no_address_is_an_error_of_its_own():
    with pytest.raises(ConfigError, match=r"^--host nowhere\.invalid --port 0: "):
        run_server(lambda: None, "nowhere.invalid", 0, 1)


SLOW_TO_START = """
import time
from ctr.serving.server.run import run_server

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

class MakeSlowly:
    def __call__(self):
        return app

    def __setstate__(self, state):
        time.sleep(7)  # longer than uvicorn waits for a process by itself

    def __getstate__(self):
        return {"any": "state"}

if __name__ == "__main__":
    run_server(MakeSlowly(), "127.0.0.1", 0, processes=2)
"""


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS)
def test_processes_that_take_long_to_import_are_waited_for(tmp_path):
    (tmp_path / "slowly.py").write_text(SLOW_TO_START)
    log = tmp_path / "log"
    with log.open("w") as printed:
        server = subprocess.Popen([sys.executable, str(tmp_path / "slowly.py")], stdout=printed, stderr=printed)
    try:
        while log.read_text().count("startup complete") < 2:
            assert server.poll() is None and "died" not in log.read_text()
            time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(START_SECONDS)


HUNG_UP = """
from ctr.serving.server.run import run_server

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        print("what waited is written", flush=True)

class Make:
    def __call__(self):
        return app

raise SystemExit(run_server(Make(), "127.0.0.1", 0, processes=1))
"""


@pytest.mark.timeout(START_SECONDS)
@pytest.mark.parametrize("before", ["", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"])
def test_a_terminal_that_closes_ends_it_as_sigterm_does_unless_that_is_ignored(tmp_path, before):
    command = [sys.executable, "-c", before + HUNG_UP]
    log = tmp_path / "log"
    with log.open("w") as printed:
        server = subprocess.Popen(command, stdout=printed, stderr=printed)
    while "startup complete" not in log.read_text():
        assert server.poll() is None, log.read_text()
        time.sleep(0.05)
    server.send_signal(signal.SIGHUP)
    if before:
        time.sleep(1)
        assert server.poll() is None
        server.terminate()
    assert server.wait(60) == 0
    assert "what waited is written" in log.read_text()


TELLS_ITS_PROCESS = """
import os
import sys
from ctr.serving.server.run import run_server

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

class Make:
    def __call__(self):
        return app

if __name__ == "__main__":
    announce = lambda port: print("port", port, flush=True)
    run_server(Make(), "127.0.0.1", int(sys.argv[1]), processes=2, announce=announce)
"""


def pids_of(port: int, connections: int) -> list[int]:
    """Which process answers each of some connections that are opened together and kept."""
    clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(connections)]
    for client in clients:
        client.connect()
    found = []
    for client in clients:
        client.request("GET", "/")
        found.append(int(client.getresponse().read()))
    for client in clients:
        client.close()
    return found


@pytest.mark.timeout(START_SECONDS)
def test_connections_are_spread_over_processes_and_one_that_died_is_replaced(tmp_path):
    script, log = tmp_path / "tells.py", tmp_path / "log"
    script.write_text(TELLS_ITS_PROCESS)

    def until(text: str, times: int) -> str:
        while log.read_text().count(text) < times:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        return log.read_text()

    with log.open("w") as printed:
        server = subprocess.Popen([sys.executable, str(script), "0"], stdout=printed, stderr=printed)
    try:
        port = int(re.search(r"port (\d+)", until("startup complete", 2))[1])
        # Of one socket, one process takes them all. Spread by chance, one gets all 24 once in 8 million times.
        first = set(pids_of(port, 24))
        assert len(first) == 2
        # A second server may not have the port, though the first one's own sockets share it.
        other = subprocess.run([sys.executable, str(script), str(port)], capture_output=True, text=True, timeout=60)
        assert other.returncode and "already in use" in other.stderr
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        until("startup complete", 3)
        second = set(pids_of(port, 24))
        assert len(second) == 2 and len(second & first) == 1 and killed not in second
    finally:
        server.terminate()
        assert server.wait(START_SECONDS) == 0
