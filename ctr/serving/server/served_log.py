"""The log of what was served: parquet parts, written by a thread that never keeps a request waiting."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pyarrow.parquet as pq

from ctr.serving.answering.answers import Answer
from ctr.serving.served.rows import ServedRow, served_row, served_table
from ctr.serving.settings import LogSettings
from features.errors import ConfigError
from features.store.atomic import flush

KEY = "QUADRANK_LOG_KEY"  # secret by which users are hashed
LOOK_SECONDS = 0.2  # after which the thread looks whether a part is due, or the server ends

log = logging.getLogger("quadrank.serve")


class ServedLog:
    """Collects answers and writes them in parts.

    A part is written under a temporary name, synced and renamed, so a reader never sees half of one. What does not fit
    into the queue is dropped and counted: ranking comes first.

    Args:
        settings: folder and sizes.
        on_drop: called for each dropped answer.

    Raises:
        ConfigError: users are to be hashed and there is no key.
    """

    def __init__(self, settings: LogSettings, on_drop: Callable[[], None] = lambda: None) -> None:
        if settings.folder is None:
            raise ConfigError("log.folder: there is none.")
        self._folder = settings.folder
        self._rows, self._seconds = settings.rows_per_part, settings.seconds_per_part
        self._key: bytes | None = None
        if settings.users == "hashed":
            self._key = os.environ.get(KEY, "").encode()
            if not self._key:
                raise ConfigError(f"log.users: hashed needs a secret in the environment variable {KEY}.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stopping = threading.Event()
        self._queue: queue.Queue[tuple[float, Answer]] = queue.Queue(settings.waiting)
        self._on_drop = on_drop
        self._thread = threading.Thread(target=self._write_parts, name="served-log", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Log an answer, or drop it where the queue is full."""
        try:
            self._queue.put_nowait((time.time(), answer))
        except queue.Full:
            self._on_drop()

    def close(self) -> None:
        """Write what waits, and end."""
        self._stopping.set()
        self._thread.join()

    def _write_parts(self) -> None:
        rows: list[ServedRow] = []
        due = time.monotonic() + self._seconds
        ended = False
        while not ended:
            with suppress(queue.Empty):
                rows.append(self._row(*self._queue.get(timeout=LOOK_SECONDS)))
            ended = self._stopping.is_set() and self._queue.empty()
            if ended or len(rows) >= self._rows or time.monotonic() >= due:
                if rows:
                    self._write(rows)
                rows, due = [], time.monotonic() + self._seconds

    def _row(self, moment: float, answer: Answer) -> ServedRow:
        user = answer.request.user
        known = {
            "request": answer.request_id,
            "logged": int(moment * 1e6),
            "version": answer.model_version,
            "variant": answer.variant,
            "user": None if user is None else self._user(str(user)),
            "user_hashed": self._key is not None and user is not None,
        }
        return served_row(known, answer.request, answer.encoded, answer.order, answer.scores)

    def _user(self, user: str) -> str:
        if self._key is None:
            return user
        return hmac.new(self._key, user.encode(), hashlib.sha256).hexdigest()[:32]

    def _write(self, rows: list[ServedRow]) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self._folder / f"served-{stamp}-{secrets.token_hex(4)}.parquet"
        partial = target.with_name(f".{target.name}")
        try:
            pq.write_table(served_table(rows), partial)
            flush(partial)
            partial.rename(target)
            flush(self._folder)
        except OSError as error:
            log.error("%s: %d answers are not logged: %s", target, len(rows), error)
            for _ in rows:
                self._on_drop()
            with suppress(OSError):
                partial.unlink()
