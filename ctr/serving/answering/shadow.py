"""Scores requests with the challenger after their answers have left; what it has no time for is dropped and counted."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ctr.serving.answering.answers import Answer, rank, read_request
from ctr.serving.backlog import Backlog
from ctr.serving.ranker import Ranker
from features.encoding.request import Limits
from features.store.served_schema import SHADOW

LOOK_SECONDS = 0.2  # after which the thread looks whether the server ends
BUSY_SECONDS = 0.002  # between two looks whether rankings have ended
log = logging.getLogger("quadrank.serve")


class Shadow:
    """A thread of the lowest priority that begins no request while rankings run or wait.

    Args:
        challenger: the version that scores; None where there is none now.
        busy: whether rankings run or wait.
        limits: of requests.
        waiting: requests that wait; more are dropped.
        waiting_mib: memory of those that wait; what exceeds it is dropped likewise.
        on_scored: called with what the challenger would have answered, under the same request id.
        on_drop: called for each request that is dropped.
        on_failure: called for each request that the challenger could not rank.
    """

    def __init__(
        self,
        challenger: Callable[[], Ranker | None],
        busy: Callable[[], bool],
        limits: Limits,
        waiting: int,
        waiting_mib: int,
        on_scored: Callable[[Answer], None],
        on_drop: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._challenger, self._busy, self._limits = challenger, busy, limits
        self._on_scored, self._on_drop, self._on_failure = on_scored, on_drop, on_failure
        self._backlog = Backlog[_Waiting](waiting, waiting_mib, on_drop)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._score_all, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def add(self, answered: Answer) -> None:
        """Score this too, or drop it where it does not fit."""
        # As the champion answered: the same instant, and as many of the best.
        known = answered.request_id, len(answered.order), answered.request.time
        self._backlog.put(_Waiting(answered.asked, *known), len(answered.asked))

    def close(self) -> None:
        """End after the request at hand; those that wait are dropped."""
        self._stopping.set()
        self._thread.join()
        self._backlog.drop_all()

    def _score_all(self) -> None:
        with suppress(AttributeError, OSError):  # Linux alone has priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._stopping.is_set():
            waiting = self._backlog.get(LOOK_SECONDS)
            if waiting is None:
                continue
            while self._busy() and not self._stopping.is_set():
                time.sleep(BUSY_SECONDS)
            if self._stopping.is_set():
                self._on_drop()
            else:
                self._score(waiting)

    def _score(self, waiting: _Waiting) -> None:
        ranker = self._challenger()
        if ranker is None:
            return
        asked = replace(read_request(waiting.body), request_id=waiting.request_id, top_k=waiting.top_k)
        try:
            self._on_scored(rank(ranker, asked, self._limits, variant=SHADOW, moment=waiting.moment))
        except Exception as error:
            log.warning("the shadow could not rank a request: %s", error)
            self._on_failure()


@dataclass(frozen=True)
class _Waiting:
    """A request that waits, as bytes: what is read of them takes up to twenty times their memory.

    Args:
        body: that asked.
        request_id: of the answer.
        top_k: how many were ranked.
        moment: as of `rank`.
    """

    body: bytes
    request_id: str
    top_k: int
    moment: int | None
