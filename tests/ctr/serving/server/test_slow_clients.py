"""Clients that do not send a whole request, or do not take its answer: each is ended, and others are answered."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from ctr.serving.answering.versions import PointerSource
from ctr.serving.server.app import Server
from ctr.serving.server.slow_clients import EndsSlowClients
from tests.ctr.serving.server.over_http import SECONDS, post, serving
from tests.ctr.serving.shop import REQUEST, serve_config

ALLOWED = 1.5  # seconds in which a head must come
BODY = json.dumps(REQUEST).encode()
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
UNREAD = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n"  # its body is nobody's


@pytest.fixture(scope="module")
def port(bundles: Path) -> Iterator[int]:
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(receive_seconds=ALLOWED))
    with serving(server, held=4096) as port:
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def answer(client: socket.socket) -> bytes:
    """Of one request: its head and what came with it."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = client.recv(65536)
        assert part, "ended before its answer"
        got += part
    return got


def send_until_ended(client: socket.socket, every: float, pieces: Iterator[bytes]) -> None:
    """Send pieces, one in so many seconds, until the server ends the connection."""
    end = time.monotonic() + SECONDS
    with suppress(ConnectionResetError, BrokenPipeError):
        for piece in pieces:
            client.sendall(piece)
            client.settimeout(every)
            with suppress(TimeoutError):
                if not client.recv(65536):
                    break
            assert time.monotonic() < end, "it goes on"


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
    began = time.monotonic()
    with closing(connected(port)) as client:
        client.sendall(start)
        assert post(port, BODY)[0] == 200
        send_until_ended(client, 0.1, repeat(piece))
    assert time.monotonic() - began > 0.99 * ALLOWED, "not before it had its time"
    assert post(port, BODY)[0] == 200


def test_what_begins_no_head_is_refused_at_once(port):
    with closing(connected(port)) as client:
        client.sendall(b"xxxx")
        assert answer(client).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("before", [b"", HEAD + BODY])
def test_a_head_that_does_not_end_is_refused_before_memory_is_full(port, before):
    with closing(connected(port)) as client:
        client.sendall(before)
        if before:
            assert answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n")
        sent, line = 0, b"a: " + b"a" * 65_000 + b"\r\n"
        with suppress(ConnectionResetError, BrokenPipeError):
            while sent < 200 * 2**20:
                client.sendall(line)
                sent += len(line)
        assert sent < 20 * 2**20  # what the kernel holds, and the limit


def test_a_head_of_some_kib_and_a_long_body_are_taken(port):
    head = HEAD.replace(b"host: x", b"host: x\r\na: " + b"a" * 30_000)
    with closing(connected(port)) as client:
        for _ in range(5):
            client.sendall(head + BODY)
            assert answer(client).startswith(b"HTTP/1.1 200")
        spaces = b" " * 500_000
        client.sendall(HEAD.replace(b"%d" % len(BODY), b"%d" % (len(BODY) + len(spaces))) + spaces + BODY + head + BODY)
        got, end = b"", time.monotonic() + SECONDS
        while got.count(b"HTTP/1.1 200") < 2:
            got += client.recv(65536)
            assert time.monotonic() < end, got


@pytest.mark.parametrize(
    ("first", "piece"),
    [(HEAD + BODY, b"\r\n"), (HEAD + BODY, b"P"), (UNREAD, b"b")],
    ids=["empty lines", "no method", "a body that nobody reads"],
)
def test_what_comes_after_an_answer_and_is_no_request_keeps_no_connection_open(port, first, piece):
    with closing(connected(port)) as client:
        client.sendall(first)
        assert answer(client).startswith(b"HTTP/1.1 200")
        send_until_ended(client, 0.1, repeat(piece))


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
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(receive_seconds=1))
    scores = server.versions.current.scores
    monkeypatch.setattr(server.versions.current, "scores", lambda encoded: (time.sleep(1.5), scores(encoded))[1])
    with serving(server) as port, closing(connected(port)) as client:
        client.sendall(HEAD + BODY + b"\r\n")
        assert answer(client).startswith(b"HTTP/1.1 200")


def is_ended(client: socket.socket, sent: bytes) -> bool:
    """Whether the server ends the connection of a client that sends on and reads nothing.

    One piece in ten milliseconds: a server that must read a thousand between two answers is busy with that for long.
    """
    end = time.monotonic() + SECONDS
    client.settimeout(0.1)
    while time.monotonic() < end:
        time.sleep(0.01)
        try:
            client.sendall(sent)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return True
    return False


def test_a_client_that_asks_on_and_takes_no_answer_is_ended(port):
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        assert is_ended(client, b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
    assert post(port, BODY)[0] == 200


class Held(asyncio.Transport):
    """A connection whose client takes nothing for `seconds`, as asyncio closes it: once all that waits is taken."""

    def __init__(self, protocol: EndsSlowClients, seconds: float) -> None:
        super().__init__()
        self.protocol, self.ended, self.waits, self.closing = protocol, "", 0, False
        asyncio.get_running_loop().call_later(seconds, self.take)

    def write(self, data: Any) -> None:
        self.waits += len(data)

    def get_write_buffer_size(self) -> int:
        return self.waits

    def is_closing(self) -> bool:
        return self.closing

    def resume_reading(self) -> None:
        """Nothing is paused."""

    def take(self) -> None:
        self.waits = 0
        if self.closing:
            self.end("closed")

    def close(self) -> None:
        self.closing = True
        if not self.waits:
            self.end("closed")

    def abort(self) -> None:
        self.end("aborted")

    def end(self, how: str) -> None:
        if not self.ended:
            self.ended, self.closing = how, True
            self.protocol.connection_lost(None)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def asked(header: bytes, kept: int, taken_after: float) -> Held:
    """A connection on which one answer was written, of a protocol that allows `ALLOWED` seconds."""
    config = uvicorn.Config(app, timeout_keep_alive=kept)
    protocol = EndsSlowClients(ALLOWED, config=config, server_state=ServerState(), app_state={})
    transport = Held(protocol, taken_after)
    protocol.connection_made(transport)
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n")
    await asyncio.gather(*protocol.tasks)
    return transport


async def how_it_ends(transport: Held) -> str:
    async with asyncio.timeout(SECONDS):
        while not transport.ended:
            await asyncio.sleep(0.02)
    return transport.ended


@pytest.mark.parametrize("header", [b"", b"connection: close\r\n"], ids=["kept", "closed after it"])
@pytest.mark.parametrize(("taken_after", "ended"), [(600, "aborted"), (ALLOWED / 4, "closed")])
def test_an_answer_that_is_never_taken_keeps_no_connection_open(header, taken_after, ended):
    async def met() -> str:
        return await how_it_ends(await asked(header, 0, taken_after))

    assert asyncio.run(met()) == ended


def test_who_takes_an_answer_slowly_is_not_ended():
    async def met() -> str:
        transport = await asked(b"", 600, 600)
        # Of two timers that are both due on a busy machine, the earlier one comes first.
        asyncio.get_running_loop().call_later(ALLOWED / 2, transport.protocol.resume_writing)
        transport.protocol.pause_writing()
        await asyncio.sleep(1.2 * ALLOWED)
        return transport.ended

    assert asyncio.run(met()) == ""


def test_who_takes_most_of_a_last_answer_must_take_the_rest():
    async def met() -> str:
        transport = await asked(b"connection: close\r\n", 600, 600)
        transport.protocol.pause_writing()
        transport.protocol.resume_writing()
        return await how_it_ends(transport)

    assert asyncio.run(met()) == "aborted"
