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
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ctr.serving.server.answers import Answer
from ctr.serving.settings import LogSettings
from features.errors import ConfigError
from features.store.atomic import flush

KEY = "QUADRANK_LOG_KEY"  # secret by which users are hashed
LOOK_SECONDS = 0.2  # after which the thread looks whether a part is due, or the server ends

log = logging.getLogger("quadrank.serve")
# Ids are text here, whichever kind the log has: one file format for all contracts.
SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("version", pa.string()),
        ("variant", pa.string()),
        ("user", pa.string()),
        ("context", pa.string()),
        ("history_hash", pa.string()),
        ("history_items", pa.list_(pa.string())),
        ("candidates", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("positions", pa.list_(pa.int32())),
        ("candidate_columns", pa.string()),
    ]
)


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
        rows: list[dict[str, Any]] = []
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

    def _row(self, moment: float, answer: Answer) -> dict[str, Any]:
        request = answer.request
        position_N = {place: position for position, place in enumerate(answer.order.tolist())}
        history = [str(item) for item in answer.encoded.history]
        return {
            "request": answer.request_id,
            "time": int(moment * 1e6),
            "version": answer.model_version,
            "variant": answer.variant,
            "user": None if request.user is None else self._user(str(request.user)),
            "context": _text(request.context),
            "history_hash": hashlib.sha256("\x1f".join(history).encode()).hexdigest()[:16],
            "history_items": history,
            "candidates": [str(item) for item in request.candidates],
            "scores": answer.scores.tolist(),
            "positions": [position_N.get(place) for place in range(len(request.candidates))],
            "candidate_columns": _text(request.candidate_columns),
        }

    def _user(self, user: str) -> str:
        if self._key is None:
            return user
        return hmac.new(self._key, user.encode(), hashlib.sha256).hexdigest()[:32]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self._folder / f"served-{stamp}-{secrets.token_hex(4)}.parquet"
        partial = target.with_name(f".{target.name}")
        try:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial)
            flush(partial)
            partial.rename(target)
            flush(self._folder)
        except OSError as error:
            log.error("%s: %d answers are not logged: %s", target, len(rows), error)
            for _ in rows:
                self._on_drop()
            with suppress(OSError):
                partial.unlink()


def _text(values: Any) -> str:
    return msgspec.json.encode(values).decode()
