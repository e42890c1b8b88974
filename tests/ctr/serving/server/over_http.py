"""A server on a socket of its own, for what only a socket shows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from ctr.serving.server.app import Server
from ctr.serving.server.slow_clients import EndsSlowClients

SECONDS = 60  # a busy machine answers within


@contextmanager
def serving(server: Server, held: int | None = None) -> Iterator[int]:
    """The port on which the app answers, as it does in production: uvicorn, our protocol over httptools.

    `held`: bytes of an answer that the system holds for a client that takes none; without it some 4 MB.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        if held is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, held)  # each connection has it from here
        protocol: Any = partial(EndsSlowClients, server.config.receive_seconds)
        config = uvicorn.Config(server.app(), http=protocol, ws="none", log_level="error")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(SECONDS)


def exchange(port: int, head: bytes, body: bytes = b"", end: bool = False) -> tuple[int, bytes]:
    """Send these bytes, close our side if they end there, and read until the server closes: status and the rest."""
    with closing(socket.create_connection(("127.0.0.1", port), SECONDS)) as client:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before the end
            client.sendall(head.replace(b"\n", b"\r\n") + body)
        if end:
            client.shutdown(socket.SHUT_WR)
        parts: list[bytes] = []
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                parts.append(part)
    whole = b"".join(parts)
    return (int(whole.split(b" ", 2)[1]) if whole else 0), whole


def post(port: int, body: bytes, length: Any = None, end: bool = False) -> tuple[int, bytes]:
    """`POST /v1/rank` with a content-length that may be a lie."""
    length = len(body) if length is None else length
    return exchange(
        port, f"POST /v1/rank HTTP/1.1\nhost: x\nconnection: close\ncontent-length: {length}\n\n".encode(), body, end
    )
