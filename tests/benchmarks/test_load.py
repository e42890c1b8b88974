"""The load generator, against servers whose answers and pauses are known."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.harness import load, wrk
from benchmarks.harness.load import send
from benchmarks.harness.served import Served
from benchmarks.harness.wrk import as_fast_as_answered

Answer = Callable[[int, bytes], tuple[int, bytes]]
OK = b'{"state":"ok","took_ms":{"decode":0.5,"model":3.0}}'


@contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """The port of a server that gives what `answer` says of the number and the body of a request; 0 hangs up."""
    numbers, lock = iter(range(10**9)), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            with lock:
                number = next(numbers)
            status, content = answer(number, body)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def bodies(tmp_path: Path) -> str:
    path = tmp_path / "bodies"
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": 3}\n')
    return str(path)


def test_so_many_requests_are_sent_and_bodies_take_turns(bodies):
    seen: list[bytes] = []

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        seen.append(body)
        return 200, OK

    with answering(answer) as port:
        found = send(port, bodies, connections=1, requests=7)
    assert seen == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}'] * 2 + [b'{"a": 1}']
    assert (found["requests"], found["errors"], found["statuses"]) == (7, 0, {"200": 7})
    assert found["model_p99_ms"] == 3.0


def test_what_is_no_answer_is_an_error_and_the_next_request_is_sent(bodies):
    popular = b'{"state":"fallback","took_ms":{"respond":0.1}}'
    outcomes = [(200, OK), (503, b"{}"), (0, b""), (500, b""), (200, popular), (200, OK)]
    with answering(lambda number, body: outcomes[number]) as port:
        found = send(port, bodies, connections=1, requests=6)
    assert found["statuses"] == {"200": 3, "503": 1, "no answer": 1, "500": 1}
    assert (found["requests"], found["errors"], found["fallbacks"]) == (3, 3, 1)


def test_requests_behind_a_slow_answer_have_waited_for_it(bodies):
    """At 100 a second on one connection the first answer takes 0.4 s: request k waits at least 0.4 - k / 100 s."""

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        time.sleep(0.4 * (number == 0))
        return 200, OK

    with answering(answer) as port:
        found = send(port, bodies, connections=1, seconds=0.21, rate=100)
    assert found["requests"] == 21
    assert found["max_ms"] >= 400 and found["p50_ms"] >= 300


def test_what_is_sent_late_is_no_delay_of_the_server(bodies, monkeypatch):
    """The clock stands still but in sleeps, which take 50 ms more than they should: no answer took any time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds + 0.05

    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    with answering(lambda number, body: (200, OK)) as port:
        found = send(port, bodies, connections=1, seconds=1.0, rate=10)
    assert found["requests"] == 10
    assert found["max_ms"] == 0.0
    assert found["late_p99_ms"] == pytest.approx(50)


def test_what_is_due_behind_a_slow_answer_was_not_sent_late(bodies, monkeypatch):
    """The first answer takes 0.35 s of a clock that runs in sleeps and answers alone: three are due meanwhile."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        now[0] += 0.35 * (number == 0)
        return 200, OK

    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    with answering(answer) as port:
        found = send(port, bodies, connections=1, seconds=0.5, rate=10)
    assert (found["requests"], found["late_p99_ms"]) == (5, pytest.approx(0))
    assert found["max_ms"] == pytest.approx(350)  # the waits are 350, 250, 150, 50 and 0 ms
    assert found["p50_ms"] == pytest.approx(150)


def test_without_a_rate_a_slow_answer_is_one_slow_answer(bodies):
    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        time.sleep(0.4 * (number == 0))
        return 200, OK

    with answering(answer) as port:
        found = send(port, bodies, connections=1, requests=21)
    assert found["max_ms"] >= 400 and found["p50_ms"] < 300


def test_a_rate_is_kept_by_all_connections_together(bodies):
    times: list[float] = []

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        times.append(time.perf_counter())
        return 200, OK

    began = time.perf_counter()
    with answering(answer) as port:
        found = send(port, bodies, connections=4, seconds=0.5, rate=40)
    assert found["requests"] == 20 == len(times)
    assert max(times) - began >= 19 / 40  # the last one is due so long after the first, which is not due before


def test_time_ends_what_is_sent_as_fast_as_answered(bodies, monkeypatch):
    """An answer takes 10 ms of a clock that stands still otherwise: as many requests as fit are sent, and no more."""
    now, begun = [0.0], [0]

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        now[0] += 0.01
        begun[0] += 1
        return 200, OK

    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with answering(answer) as port:
        found = send(port, bodies, connections=1, seconds=0.2)
    # The clock of `seconds` starts 0.05 s late, for the threads to begin.
    assert found["requests"] == begun[0] == pytest.approx(25, abs=1)
    assert found["seconds"] == pytest.approx(0.2, abs=0.011) and found["seconds"] >= 0.2
    assert found["requests_per_s"] == pytest.approx(found["requests"] / found["seconds"])


def test_without_wrk_our_own_generator_sends(bodies, monkeypatch):
    answered: list[int] = []

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        answered.append(number)
        return (200, OK) if number % 2 else (503, b"")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with answering(answer) as port:
        found = as_fast_as_answered(port, Path(bodies), 2, 1.0)
    assert len(answered) > 1
    assert (found["tool"], found["requests"], found["errors"]) == ("own", len(answered) // 2, (len(answered) + 1) // 2)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_bodies_and_tells_errors(bodies):
    seen: set[bytes] = set()

    def answer(number: int, body: bytes) -> tuple[int, bytes]:
        seen.add(body)
        return (200 if number % 2 else 503), OK

    with answering(answer) as port:
        found = as_fast_as_answered(port, Path(bodies), 2, 1.0)
    assert seen == {b'{"a": 1}', b'{"b": 2}', b'{"c": 3}'}
    assert found["tool"] == "wrk" and found["requests"] > 4
    assert found["errors"] == pytest.approx(found["requests"], abs=2)  # what was refused is not answered


def test_what_a_wrk_says_is_read(bodies, tmp_path, monkeypatch):
    fake = tmp_path / "wrk"
    fake.write_text(
        '#!/bin/sh\necho "$@"\ncat "$QUADRANK_BODIES"\necho \'{"requests": 30, "seconds": 2.0, "errors": 1}\'\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(wrk.shutil, "which", lambda name: str(fake))
    assert as_fast_as_answered(1, Path(bodies), 3, 1.2) == {
        "requests": 30, "seconds": 2.0, "errors": 1, "requests_per_s": 15.0, "tool": "wrk"
    }  # fmt: skip
    fake.write_text("#!/bin/sh\necho no such host >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="no such host"):
        as_fast_as_answered(1, Path(bodies), 3, 1.2)


def test_time_and_memory_of_a_process_are_what_it_knows_of_itself():
    ours = Served(port=0, pid=os.getpid())
    before, began = ours.cpu_seconds(), time.process_time()
    while time.process_time() - began < 0.3:
        json.dumps(list(range(1000)))
    assert ours.cpu_seconds() - before == pytest.approx(time.process_time() - began, abs=0.1)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert ours.resident_mib() == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, rel=0.05)
