"""A load generator: as fast as answers come, or at a constant rate that a slow answer does not slow down."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctr.serving.server.run import keep_pauses_short

ANSWER_SECONDS = 60.0
TOOK = b'"took_ms":'
FALLBACK = b'"state":"fallback"'
LOST = "no answer"  # in the place of a status


@dataclass
class Seen:
    """What came back: milliseconds of each answer, and of the model in it; how many of each status.

    `late_ms`: how long after they were due this side sent requests whose connection was free.
    """

    latency_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    model_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    fallbacks: int = 0


def send(
    port: int,
    bodies: str,
    connections: int,
    seconds: float = 0.0,
    requests: int = 0,
    rate: float = 0.0,
) -> dict[str, Any]:
    """Send `POST /v1/rank` to a server on this machine; each connection waits for its answer before its next request.

    With a rate, request k is due k / rate seconds after the start, on connection k modulo their number. Where that
    connection still waits for an answer then, latency counts from when the request was due, so the wait behind a slow
    answer is in it. Else it counts from when it was sent: that this process woke up late is no delay of the server, and
    has a number of its own. Without a rate it counts from when it was sent.

    Args:
        port: of the server.
        bodies: file of a JSON body a line, sent in turn.
        connections: of as many threads; the most requests that are under way.
        seconds: how long; 0 if `requests` says how many.
        requests: how many in all.
        rate: requests a second; 0 for as fast as answers come.

    Returns:
        `requests` answered, `seconds`, `requests_per_s`, `p50_ms`, `p95_ms`, `p99_ms` and `max_ms` of the answers of
        status 200, `model_p99_ms` as their `took_ms` says, `late_p99_ms` of what was sent late on a free
        connection (None without a rate), `errors` (other statuses, connections that broke), `statuses`, and
        `fallbacks`, answers by popularity.
    """
    lines = Path(bodies).read_bytes().splitlines()
    wires = [
        b"POST /v1/rank HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b" % (len(line), line)
        for line in lines
    ]
    total = requests or (int(rate * seconds) if rate else 0)
    seen, start = [Seen() for _ in range(connections)], time.perf_counter() + 0.05
    turns = itertools.count()
    threads = [
        threading.Thread(
            target=_converse,
            args=(port, wires, _paced(start, rate, range(place, total, connections), of.late_ms), of)
            if rate
            else (port, wires, _at_once(start, seconds, total, turns), of),
        )
        for place, of in enumerate(seen)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _summary(seen, time.perf_counter() - start)


def send_alone(**how: Any) -> dict[str, Any]:
    """`send` in a process that does nothing else: its own pauses would be taken for the server's, and are short."""
    keep_pauses_short()
    return send(**how)


def _paced(start: float, rate: float, numbers: range, late_ms: list[float]) -> Iterator[tuple[int, float]]:
    """Number of a request, and when its latency begins: when it is sent, or was due if the answer before came later."""
    for number in numbers:
        due = start + number / rate
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
            now = time.perf_counter()
            late_ms.append((now - due) * 1e3)
            yield number, now
        else:
            yield number, due


def _at_once(start: float, seconds: float, total: int, turns: Iterator[int]) -> Iterator[tuple[int, float]]:
    """Number of a request and the time now, until so many were sent, or the time is over."""
    while (now := time.perf_counter()) < start + seconds or total:
        number = next(turns)
        if total and number >= total:
            return
        yield number, now


def _converse(port: int, wires: list[bytes], due: Iterator[tuple[int, float]], seen: Seen) -> None:
    connection = _connect(port)
    for number, since in due:
        try:
            connection.sendall(wires[number % len(wires)])
            status, body = _receive(connection)
        except OSError:
            seen.statuses[LOST] += 1
            connection.close()
            connection = _connect(port)
            continue
        seen.statuses[status] += 1
        if status == "200":
            seen.latency_ms.append((time.perf_counter() - since) * 1e3)
            if FALLBACK in body:
                seen.fallbacks += 1
            else:
                seen.model_ms.append(json.loads(body[body.rindex(TOOK) + len(TOOK) : -1])["model"])
    connection.close()


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket) -> tuple[str, bytes]:
    """Status and body of an answer whose head states its length."""
    got = b""
    while (end := got.find(b"\r\n\r\n")) < 0:
        got += _some(connection)
    head = got[:end].lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    parts, lacking = [got[end + 4 :]], length - (len(got) - end - 4)
    while lacking > 0:
        parts.append(_some(connection))
        lacking -= len(parts[-1])
    return head.split(b" ", 2)[1].decode(), b"".join(parts)


def _some(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 18)
    if not part:
        raise ConnectionResetError("closed before the end of its answer")
    return part


def _summary(seen: list[Seen], seconds: float) -> dict[str, Any]:
    latency = np.concatenate([np.asarray(one.latency_ms) for one in seen])
    model = np.concatenate([np.asarray(one.model_ms) for one in seen])
    statuses = sum((one.statuses for one in seen), Counter[str]())
    return {
        "requests": len(latency),
        "seconds": seconds,
        "requests_per_s": len(latency) / seconds,
        **{f"p{share}_ms": _quantile(latency, share / 100) for share in (50, 95, 99)},
        "max_ms": _quantile(latency, 1.0),
        "model_p99_ms": _quantile(model, 0.99),
        "late_p99_ms": _quantile(np.concatenate([np.asarray(one.late_ms) for one in seen]), 0.99),
        "errors": statuses.total() - statuses["200"],
        "statuses": dict(statuses),
        "fallbacks": sum(one.fallbacks for one in seen),
    }


def _quantile(milliseconds: np.ndarray, share: float) -> float | None:
    return float(np.quantile(milliseconds, share)) if len(milliseconds) else None
