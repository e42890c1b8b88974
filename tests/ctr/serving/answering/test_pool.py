"""Threads that rank: results, refusals, and places that are free only when the work has ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from ctr.serving.answering.pool import OverloadedError, RankingPool

DEADLINE = 1.0


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


def test_what_waits_too_long_does_not_run_and_what_has_no_place_is_refused(pool):
    ran = []

    async def three() -> None:
        slow = asyncio.create_task(pool.run(lambda: time.sleep(DEADLINE + 0.2)))
        late = asyncio.create_task(pool.run(lambda: ran.append("late")))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as full:
            await pool.run(lambda: ran.append("full"))
        assert full.value.reason == "full" and pool.taken == 2
        with pytest.raises(OverloadedError) as found:
            await late
        assert found.value.reason == "late" and slow.done()

    asyncio.run(three())
    assert ran == [] and pool.taken == 0


def test_who_hangs_up_leaves_the_place_taken_until_the_work_has_ended(pool):
    ended = threading.Event()

    async def hang_up() -> None:
        waiting = asyncio.create_task(pool.run(lambda: ended.wait(5)))
        await asyncio.sleep(0.01)
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
        asyncio.create_task(pool.run(lambda: (begun.set(), end.wait(5))))  # noqa: RUF006
        await asyncio.to_thread(begun.wait, 5)

    asyncio.run(leave())  # its event loop closes while the job runs
    end.set()

    async def after() -> int:
        return await pool.run(lambda: 4)

    assert asyncio.run(after()) == 4
