"""Clients that open a connection and do not send a whole request: each is ended, and others are answered meanwhile."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import repeat
from pathlib import Path

import pytest

from ctr.serving.answering.versions import PointerSource
from ctr.serving.server.app import Server
from tests.ctr.serving.server.over_http import SECONDS, post, serving
from tests.ctr.serving.shop import REQUEST, serve_config

ALLOWED = 1.5  # seconds in which a head must come
BODY = json.dumps(REQUEST).encode()
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
UNREAD = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n"  # its body is nobody's


@pytest.fixture(scope="module")
def port(bundles: Path) -> Iterator[int]:
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(receive_seconds=ALLOWED))
    with serving(server) as port:
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def answer(client: socket.socket) -> bytes:
    """Of one request: its head and what came with it."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(65536)
    return got


def seconds_until_ended(client: socket.socket, every: float, pieces: Iterator[bytes]) -> float:
    """Send pieces, one in so many seconds, until the server ends the connection; how long that took."""
    began = time.monotonic()
    with suppress(ConnectionResetError, BrokenPipeError):
        for piece in pieces:
            client.sendall(piece)
            client.settimeout(every)
            with suppress(TimeoutError):
                if not client.recv(65536):
                    break
            assert time.monotonic() < began + SECONDS, "it goes on"
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (HEAD[:30], b""),
        (b"POST /v1/rank HTTP/1.1\r\nx: ", b"y"),
        (b"POST /v1/rank HTTP/1.1\r\n", b"x: y\r\n"),
        (b"", b"\r\n"),
    ],
    ids=["nothing", "half a head", "a value byte by byte", "header by header", "empty lines"],
)
def test_a_connection_whose_head_does_not_come_is_ended_and_others_are_answered(port, start, piece):
    with closing(connected(port)) as client:
        client.sendall(start)
        assert post(port, BODY)[0] == 200
        taken = seconds_until_ended(client, 0.1, repeat(piece))
    assert taken < SECONDS
    assert taken > ALLOWED / 2, "not before it had its time"
    assert post(port, BODY)[0] == 200


def test_what_begins_no_head_is_refused_at_once(port):
    with closing(connected(port)) as client:
        client.sendall(b"xxxx")
        assert answer(client).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("first", "piece"),
    [(HEAD + BODY, b"\r\n"), (HEAD + BODY, b"P"), (UNREAD, b"b")],
    ids=["empty lines", "no method", "a body that nobody reads"],
)
def test_what_comes_after_an_answer_and_is_no_request_keeps_no_connection_open(port, first, piece):
    with closing(connected(port)) as client:
        client.sendall(first)
        assert answer(client).startswith(b"HTTP/1.1 200")
        seconds_until_ended(client, 0.1, repeat(piece))


def test_who_is_slow_and_ends_in_time_is_answered_each_time(port):
    """Together they take longer than one may: each head has its own time, and so has the body."""
    began = time.monotonic()
    with closing(connected(port)) as client:
        for _ in range(3):
            for part in (HEAD[:10], HEAD[10:40], HEAD[40:], BODY[:10], BODY[10:]):
                client.sendall(part)
                time.sleep(0.15)
            assert answer(client).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began > ALLOWED


def test_requests_that_are_sent_ahead_are_answered(port):
    with closing(connected(port)) as client:
        client.sendall((HEAD + BODY) * 2 + HEAD + BODY[:10])
        got, end = b"", time.monotonic() + SECONDS
        while got.count(b"HTTP/1.1 200") < 2:
            got += client.recv(65536)
            assert time.monotonic() < end, got
        client.sendall(BODY[10:])
        while got.count(b"HTTP/1.1 200") < 3:
            got += client.recv(65536)
            assert time.monotonic() < end, got


def test_an_answer_that_takes_longer_than_a_head_may_is_waited_for(bundles, monkeypatch):
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(receive_seconds=0.3))
    scores = server.versions.current.scores
    monkeypatch.setattr(server.versions.current, "scores", lambda encoded: (time.sleep(1), scores(encoded))[1])
    with serving(server) as port, closing(connected(port)) as client:
        client.sendall(HEAD + BODY + b"\r\n")
        assert answer(client).startswith(b"HTTP/1.1 200")
