"""Scores requests with the challenger after their answers have left; what it has no time for is dropped and counted."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ctr.serving.answering.answers import Answer, Asked, Stages, rank
from ctr.serving.ranker import Ranker
from features.encoding.request import Limits
from features.store.served_schema import SHADOW

LOOK_SECONDS = 0.002  # between two looks whether rankings have ended
log = logging.getLogger("quadrank.serve")


class Shadow:
    """A thread of the lowest priority that begins no request while rankings run or wait.

    Args:
        challenger: the version that scores; None where there is none now.
        busy: whether rankings run or wait.
        limits: of requests.
        waiting: answers that wait; more are dropped.
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
        on_scored: Callable[[Answer], None],
        on_drop: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._challenger, self._busy, self._limits = challenger, busy, limits
        self._on_scored, self._on_drop, self._on_failure = on_scored, on_drop, on_failure
        self._queue: queue.Queue[Answer | None] = queue.Queue(waiting)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._score_all, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def add(self, answered: Answer) -> None:
        """Score this too, or drop it where the queue is full."""
        try:
            self._queue.put_nowait(answered)
        except queue.Full:
            self._on_drop()

    def close(self) -> None:
        """End after the request at hand; those that wait are dropped."""
        self._stopping.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join()
        while not self._queue.empty():
            if self._queue.get_nowait() is not None:
                self._on_drop()

    def _score_all(self) -> None:
        with suppress(AttributeError, OSError):  # Linux alone has priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._stopping.is_set():
            answered = self._queue.get()
            while self._busy() and not self._stopping.is_set():
                time.sleep(LOOK_SECONDS)
            if answered is None:
                continue
            if self._stopping.is_set():
                self._on_drop()
            else:
                self._score(answered)

    def _score(self, answered: Answer) -> None:
        ranker = self._challenger()
        if ranker is None:
            return
        # As the champion answered: the same instant, and as many of the best.
        asked = Asked(answered.raw, answered.request_id, len(answered.order), Stages(), answered.size)
        try:
            self._on_scored(rank(ranker, asked, self._limits, variant=SHADOW, moment=answered.request.time))
        except Exception as error:
            log.warning("the shadow could not rank a request: %s", error)
            self._on_failure()
