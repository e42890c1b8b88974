"""Ends connections on which no request comes in time, or whose client does not take its answers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 * 1024  # bytes


class EndsSlowClients(HttpToolsProtocol):
    """uvicorn's protocol with a time for the head of each request and for taking an answer; uvicorn's own has none.

    The time of a head begins when a client connects, and after an answer with the first byte that comes; it ends with
    the head. So it ends too what comes after an answer and is no request: empty lines, or a body that no route read.
    Bodies have a time of their own (`Server`), and between two requests uvicorn closes what sends nothing for 5 s.

    A head has a size too: uvicorn would keep all of it, whatever comes.

    The time of an answer begins when more of it waits than asyncio likes to hold, or where the connection is to be
    closed once all is taken; it ends when little waits, or with the connection.

    Args:
        seconds: that a head may take, and an answer.
        how: as of uvicorn.
    """

    def __init__(self, seconds: float, **how: Any) -> None:
        super().__init__(**how)
        self._seconds = seconds
        self._head_due: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = True, 0  # those of reads in which it neither begins nor ends
        self._taken_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        self._head_due = self._abort_later()

    def data_received(self, data: bytes) -> None:
        """Bytes come."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of a request is larger than {MOST_HEAD // 1024} KiB.")
        if self._head_due is None and self.cycle.response_complete:
            self._head_due = self._abort_later()

    def on_headers_complete(self) -> None:
        """A head is there."""
        super().on_headers_complete()  # raises where it is none
        self._in_head, self._head_bytes = False, 0
        self._head_is_there()

    def on_message_complete(self) -> None:
        """A request is there, its body too."""
        super().on_message_complete()
        self._in_head = True

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._must_take()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        super().resume_writing()
        self._has_taken()
        if self.transport.is_closing():  # and what still waits keeps the connection open
            self._must_take()

    def on_response_complete(self) -> None:
        """An answer is written, though perhaps not sent; uvicorn closes a connection that is not kept."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._must_take()

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come, and uvicorn closes the connection, once the client has taken all answers."""
        super().timeout_keep_alive_handler()
        self._must_take()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._head_is_there()
        self._has_taken()
        super().connection_lost(exc)

    def _abort_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self._seconds, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _must_take(self) -> None:
        if self._taken_due is None:
            self._taken_due = self._abort_later()

    def _has_taken(self) -> None:
        if self._taken_due is not None:
            self._taken_due.cancel()
            self._taken_due = None
