"""A bounded queue before a few ranking threads: what does not fit, or cannot end in time, is refused when it comes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
REMEMBERED = 16  # jobs that the estimate of a job's length is, roughly, the mean of


class OverloadedError(Exception):
    """No place in the queue, or none in time; `reason` is `full`, `late` or `stopping`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RankingPool:
    """Runs work in threads, outside the event loop.

    A result goes to who awaits it in one step. An executor's takes three turns of the event loop, which an idle server
    has to wake up for: a tenth of a millisecond.

    A job that would end after its deadline, by how long the last ones took, is refused when it comes. If each waited
    for its turn first, under too much load each would begin just before its deadline and end behind it: all work for
    nobody. An idle pool takes any job, so that the estimate follows.

    Args:
        threads: jobs that run at the same time.
        size: jobs that may wait beside them.
        deadline: seconds after which nobody wants a job's result.
    """

    def __init__(self, threads: int, size: int, deadline: float) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"rank-{number}", daemon=True) for number in range(threads)]
        self._places = threads + size
        self._deadline = deadline
        self._taken = 0
        self._typical: float | None = None  # seconds of a job
        self._stopping = False
        for thread in self._threads:
            thread.start()

    @property
    def taken(self) -> int:
        """Jobs that run or wait."""
        return self._taken

    async def run(self, job: Callable[[], T]) -> T:
        """The job's result.

        Raises:
            OverloadedError: the queue is full, the job would not end before the deadline, or the pool is stopping.
        """
        if self._stopping:
            raise OverloadedError("stopping")
        if self._taken >= self._places:
            raise OverloadedError("full")
        typical, idle = self._typical or 0.0, self._taken == 0
        if not idle and (self._taken + 1) * typical / len(self._threads) > self._deadline:
            raise OverloadedError("late")
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()
        self._taken += 1
        latest = math.inf if idle else time.monotonic() + self._deadline - typical
        self._jobs.put(_Job(job, latest, loop, waiting))
        return await waiting

    def close(self) -> None:
        """Refuse new jobs and wait for those that were taken."""
        self._stopping = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._ran(self._jobs.get()):
            pass

    def _ran(self, job: _Job | None) -> bool:
        """Run a job; false where there is none. Nothing of it stays in the thread while that waits for the next one."""
        if job is None:
            return False
        result, error = None, None
        try:
            began = time.monotonic()
            if began > job.latest:
                raise OverloadedError("late")
            result = job.work()
            self._took(time.monotonic() - began)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            job.loop.call_soon_threadsafe(self._end, job.waiting, result, error)
        return True

    def _took(self, seconds: float) -> None:
        known = seconds if self._typical is None else self._typical
        self._typical = known + (seconds - known) / REMEMBERED

    def _end(self, waiting: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        # A client that hangs up cancels the waiting, not the work: the place is free when the work has ended.
        self._taken -= 1
        if waiting.done():
            return
        if error is None:
            waiting.set_result(result)
        else:
            waiting.set_exception(error)
            waiting.exception()  # read once, so that an abandoned request leaves no warning


@dataclass(frozen=True)
class _Job:
    """Work, the latest monotonic second at which it may begin, and who awaits it on which event loop."""

    work: Callable[[], Any]
    latest: float
    loop: asyncio.AbstractEventLoop
    waiting: asyncio.Future[Any]
