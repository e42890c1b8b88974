"""The log of what was served: parquet parts, written by a thread that never keeps a request waiting."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ctr.serving.answering.answers import Answer
from ctr.serving.backlog import Backlog
from ctr.serving.ranker import graph_inputs
from ctr.serving.served.part import OpenPart, remove_left
from ctr.serving.served.rows import ServedRow, served_row, served_table
from ctr.serving.settings import LogSettings
from features.errors import ConfigError

KEY = "QUADRANK_LOG_KEY"  # secret by which users are hashed
LOOK_SECONDS = 0.2  # after which the thread looks whether a part is due, or the server ends
GROUP = 64  # rows that are written at once: what rankings wait for, and what memory holds of an open part
JSON_FACTOR = 4  # by which what was read of a body is larger than the body

log = logging.getLogger("quadrank.serve")


class ServedLog:
    """Collects answers and writes them in parts.

    A part grows by some rows at a time under a temporary name, is synced and renamed, so a reader never sees half of
    one, and a kill loses the part in hand. What does not fit into the queue is dropped and counted: ranking comes
    first. So is what cannot be written; the log goes on.

    Args:
        settings: folder and sizes.
        on_drop: called for each dropped answer.

    Raises:
        ConfigError: users are to be hashed and there is no key, or the folder cannot be made.
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
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"log.folder: {self._folder} cannot be made: {error}.") from None
        remove_left(self._folder)
        self._stopping = threading.Event()
        self._backlog = Backlog[tuple[float, Answer]](settings.waiting, settings.waiting_mib, on_drop)
        self._on_drop = on_drop
        self._group: list[ServedRow] = []
        self._part: OpenPart | None = None
        self._thread = threading.Thread(target=self._write_parts, name="served-log", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Log an answer, or drop it where it does not fit."""
        size = JSON_FACTOR * len(answer.asked) + sum(values.nbytes for values in graph_inputs(answer.encoded).values())
        # What the log does not need would be most of what waits.
        request = replace(answer.request, past=None, history=(), history_events={}, candidate_columns={})
        self._backlog.put((time.time(), replace(answer, body=b"", asked=b"", raw={}, request=request)), size)

    def close(self) -> None:
        """Write what waits, and end."""
        self._stopping.set()
        self._thread.join()

    def _write_parts(self) -> None:
        due = time.monotonic() + self._seconds
        ended = False
        while not ended:
            waited = self._backlog.get(LOOK_SECONDS)
            if waited is not None:
                self._take(*waited)
            ended = self._stopping.is_set() and not self._backlog
            rows = len(self._group) + (self._part.rows if self._part else 0)
            is_due = ended or rows >= self._rows or time.monotonic() >= due
            if is_due or len(self._group) >= GROUP:
                self._write_group()
            if is_due:
                self._finish()
                due = time.monotonic() + self._seconds

    def _take(self, moment: float, answer: Answer) -> None:
        try:
            self._group.append(self._row(moment, answer))
        except Exception as error:  # whatever it is, the answers after it are logged
            self._dropped(1, error)

    def _row(self, moment: float, answer: Answer) -> ServedRow:
        user, encoded = answer.request.user, answer.encoded
        is_hashed = self._key is not None and user is not None
        if is_hashed:
            # The first column is the id's index, which the bundle's vocabulary turns back into the id.
            encoded = replace(encoded, user=dict(list(encoded.user.items())[1:]))
        known = {
            "request": answer.request_id,
            "logged": int(moment * 1e6),
            "version": answer.model_version,
            "variant": answer.variant,
            "user": None if user is None else self._user(str(user)),
            "user_hashed": is_hashed,
        }
        return served_row(known, answer.request, encoded, answer.order, answer.scores)

    def _user(self, user: str) -> str:
        if self._key is None:
            return user
        return hmac.new(self._key, user.encode(), hashlib.sha256).hexdigest()[:32]

    def _write_group(self) -> None:
        rows, self._group = self._group, []
        if not rows:
            return
        try:
            table = served_table(rows)
        except Exception as error:
            self._dropped(len(rows), error)
            return
        try:
            self._part = self._part or OpenPart(self._folder)
            self._part.add(table)
        except Exception as error:
            self._drop_part(len(rows), error)

    def _finish(self) -> None:
        if self._part is None:
            return
        try:
            self._part.finish()
            self._part = None
        except Exception as error:
            self._drop_part(0, error)

    def _drop_part(self, more: int, error: Exception) -> None:
        """Nothing is left of the part in hand; so many rows are lost that were not yet in it."""
        part, self._part = self._part, None
        if part is not None:
            part.drop()
        self._dropped(more + (part.rows if part else 0), error)

    def _dropped(self, rows: int, error: Exception) -> None:
        log.error("%s: %d answers are not logged: %s: %s", self._folder, rows, type(error).__name__, error)
        for _ in range(rows):
            self._on_drop()
