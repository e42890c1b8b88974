"""Ends connections on which no request comes, or so slowly that its head is not there in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HeadsInTime(HttpToolsProtocol):
    """uvicorn's protocol with a time for the head of each request, which uvicorn itself lets take any.

    The time begins when a client connects, and after an answer with the first byte that comes; it ends with the head.
    So it ends too what comes after an answer and is no request: empty lines, or a body that no route read. Bodies have
    a time of their own (`Server`), and between two requests uvicorn closes what sends nothing for 5 s.

    Args:
        seconds: that a head may take.
        how: as of uvicorn.
    """

    def __init__(self, seconds: float, **how: Any) -> None:
        super().__init__(**how)
        self._seconds = seconds
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        self._due = self.loop.call_later(self._seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Bytes come."""
        super().data_received(data)
        if self._due is None and self.cycle.response_complete:
            self._due = self.loop.call_later(self._seconds, self.transport.abort)

    def on_headers_complete(self) -> None:
        """A head is there."""
        super().on_headers_complete()  # raises where it is none
        self._in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
