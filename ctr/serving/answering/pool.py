"""A bounded queue before a few ranking threads: what does not fit is refused, what waited too long is not run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OverloadedError(Exception):
    """No place in the queue, or none in time; `reason` is `full`, `late` or `stopping`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RankingPool:
    """Runs work in threads, outside the event loop.

    Args:
        threads: jobs that run at the same time.
        size: jobs that may wait beside them.
        deadline: seconds that a job may wait.
    """

    def __init__(self, threads: int, size: int, deadline: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rank")
        self._places = threads + size
        self._deadline = deadline
        self._taken = 0
        self._stopping = False

    @property
    def taken(self) -> int:
        """Jobs that run or wait."""
        return self._taken

    async def run(self, job: Callable[[], T]) -> T:
        """The job's result.

        Raises:
            OverloadedError: the queue is full, the job waited longer than the deadline, or the pool is stopping.
        """
        if self._stopping:
            raise OverloadedError("stopping")
        if self._taken >= self._places:
            raise OverloadedError("full")
        latest = time.monotonic() + self._deadline

        def in_time() -> T:
            if time.monotonic() > latest:
                raise OverloadedError("late")
            return job()

        self._taken += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, in_time)
        # A client that hangs up cancels the waiting, not the work: the place is free when the work has ended.
        future.add_done_callback(self._free)
        return await asyncio.shield(future)

    def close(self) -> None:
        """Refuse new jobs and wait for those that were taken."""
        self._stopping = True
        self._executor.shutdown(wait=True)

    def _free(self, future: asyncio.Future[T]) -> None:
        self._taken -= 1
        if not future.cancelled():
            future.exception()  # read once, so that an abandoned request leaves no warning
