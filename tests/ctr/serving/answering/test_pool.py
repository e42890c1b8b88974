"""Threads that rank: results, refusals, and places that are free only when the work has ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ctr.serving.answering import pool as pool_module
from ctr.serving.answering.pool import OverloadedError, RankingPool

DEADLINE = 1.0
SECONDS = 60  # a busy machine answers within


class Clock:
    """The time of pools: it stands still until a job lets some pass, however long a busy machine takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def pool() -> Iterator[RankingPool]:
    pool = RankingPool(threads=1, size=1, deadline=DEADLINE)
    yield pool
    pool.close()


def test_a_result_and_an_error_reach_who_awaits_them(pool):
    async def both() -> None:
        assert await pool.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        assert await pool.run(lambda: 3) == 3

    asyncio.run(both())
    assert pool.taken == 0


def test_what_waits_too_long_does_not_run_and_what_has_no_place_is_refused(pool, clock):
    ran, go_on = [], threading.Event()

    async def three() -> None:
        slow = asyncio.create_task(pool.run(lambda: (go_on.wait(SECONDS), clock.work(DEADLINE + 0.2))))
        late = asyncio.create_task(pool.run(lambda: ran.append("late")))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as full:
            await pool.run(lambda: ran.append("full"))
        assert full.value.reason == "full" and pool.taken == 2
        go_on.set()
        with pytest.raises(OverloadedError) as found:
            await late
        assert found.value.reason == "late" and slow.done()

    asyncio.run(three())
    assert ran == [] and pool.taken == 0


def crowd(pool: RankingPool, clock: Clock, seconds: float, count: int) -> tuple[int, int]:
    """Ask for as many jobs at once; how many were refused before any ended, and how many ran to their end in time."""
    ran: list[float] = []
    asked = threading.Event()

    def job() -> None:
        assert asked.wait(SECONDS)
        clock.work(seconds)
        ran.append(clock.now)

    async def ask() -> tuple[int, int]:
        tasks = [asyncio.create_task(pool.run(job)) for _ in range(count)]
        await asyncio.sleep(0)
        refused = [task for task in tasks if task.done()]
        asked.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        errors = [task.exception() for task in refused]
        assert all(isinstance(error, OverloadedError) and error.reason == "late" for error in errors)
        return len(refused), len(ran)

    return asyncio.run(ask())


def test_what_would_end_behind_the_deadline_is_refused_when_it_comes(clock):
    """Of jobs of 0.05 s, ten end within 0.52 s."""
    pool = RankingPool(threads=1, size=100, deadline=0.52)
    try:
        assert crowd(pool, clock, 0.05, 1) == (0, 1)
        assert crowd(pool, clock, 0.05, 40) == (30, 10)
    finally:
        pool.close()


def test_what_could_begin_before_the_deadline_and_not_end_is_not_run(clock):
    pool, ran, go_on = RankingPool(threads=1, size=1, deadline=0.5), [], threading.Event()
    try:
        crowd(pool, clock, 0.05, 1)

        async def two() -> None:
            slow = asyncio.create_task(pool.run(lambda: (go_on.wait(SECONDS), clock.work(0.47))))
            late = asyncio.create_task(pool.run(lambda: ran.append("late")))
            await asyncio.sleep(0)
            assert pool.taken == 2, "it may wait"
            go_on.set()
            with pytest.raises(OverloadedError):
                await late
            await slow

        asyncio.run(two())
        assert ran == []
    finally:
        pool.close()


def test_the_estimate_follows_jobs_that_have_become_quick(clock):
    pool = RankingPool(threads=1, size=100, deadline=0.5)
    try:
        crowd(pool, clock, 0.2, 1)
        assert crowd(pool, clock, 0.0, 20) == (18, 2)
        for _ in range(40):
            crowd(pool, clock, 0.0, 1)
        assert crowd(pool, clock, 0.0, 20) == (0, 20)
    finally:
        pool.close()


def test_two_threads_take_twice_as_many(clock):
    taken = []
    for threads in (1, 2):
        pool = RankingPool(threads=threads, size=100, deadline=0.52)
        crowd(pool, clock, 0.05, 1)
        taken.append(40 - crowd(pool, clock, 0.05, 40)[0])
        pool.close()
    assert taken == [10, 20]


def test_an_idle_pool_takes_a_job_that_is_longer_than_its_deadline(clock):
    pool = RankingPool(threads=1, size=1, deadline=0.01)
    try:
        assert [crowd(pool, clock, 0.03, 1) for _ in range(3)] == [(0, 1)] * 3
    finally:
        pool.close()


def test_who_hangs_up_leaves_the_place_taken_until_the_work_has_ended(pool):
    ended = threading.Event()

    async def hang_up() -> None:
        waiting = asyncio.create_task(pool.run(lambda: ended.wait(SECONDS)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.taken == 1
        ended.set()
        assert await pool.run(lambda: "next") == "next"

    asyncio.run(hang_up())
    assert pool.taken == 0


def test_closing_waits_for_what_was_taken_and_refuses_more(pool):
    ran = []

    async def close() -> None:
        taken = asyncio.create_task(pool.run(lambda: (time.sleep(0.1), ran.append("taken"))))
        await asyncio.sleep(0)
        pool.close()
        assert ran == ["taken"]
        with pytest.raises(OverloadedError) as refused:
            await pool.run(lambda: ran.append("refused"))
        assert refused.value.reason == "stopping"
        await taken

    asyncio.run(close())
    assert ran == ["taken"]


def test_a_result_that_nobody_can_get_stops_no_thread(pool):
    begun, end = threading.Event(), threading.Event()

    async def leave() -> None:
        asyncio.create_task(pool.run(lambda: (begun.set(), end.wait(SECONDS))))  # noqa: RUF006
        await asyncio.to_thread(begun.wait, SECONDS)

    asyncio.run(leave())  # its event loop closes while the job runs
    end.set()

    async def after() -> int:
        return await pool.run(lambda: 4)

    assert asyncio.run(after()) == 4
