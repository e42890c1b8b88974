"""What waits for a thread: bounded by number and by bytes, first in, first out."""

from __future__ import annotations

import threading
import time

from ctr.serving.backlog import Backlog

MIB = 2**20


class Dropped:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_the_first_comes_first():
    backlog = Backlog[str](3, 1, Dropped())
    for one in "abc":
        backlog.put(one, 1)
    assert len(backlog) == 3
    assert [backlog.get(0) for _ in range(4)] == ["a", "b", "c", None]
    assert len(backlog) == 0


def test_so_many_wait_and_no_more():
    dropped = Dropped()
    backlog = Backlog[str](2, 1, dropped)
    for one in "abc":
        backlog.put(one, 1)
    assert dropped.count == 1
    assert [backlog.get(0) for _ in range(3)] == ["a", "b", None]


def test_so_many_bytes_wait_and_no_more():
    dropped = Dropped()
    backlog = Backlog[str](9, 1, dropped)
    backlog.put("a", MIB - 10)
    backlog.put("too large", 11)
    assert dropped.count == 1
    backlog.put("b", 10)
    assert dropped.count == 1
    assert [backlog.get(0) for _ in range(3)] == ["a", "b", None]
    backlog.put("whole", MIB)
    assert dropped.count == 1, "what was taken and what was dropped takes no room"


def test_what_waits_is_dropped_at_the_end():
    dropped = Dropped()
    backlog = Backlog[str](9, 1, dropped)
    for one in "abc":
        backlog.put(one, 1)
    backlog.drop_all()
    assert (dropped.count, len(backlog)) == (3, 0)


def test_who_waits_gets_what_comes_at_once():
    backlog = Backlog[str](9, 1, Dropped())
    threading.Timer(0.1, backlog.put, ("late", 1)).start()
    began = time.monotonic()
    assert backlog.get(60) == "late"
    assert time.monotonic() - began < 30
