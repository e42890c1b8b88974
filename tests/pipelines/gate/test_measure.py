"""Latency by turns, on a clock that the calls themselves move."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.gate.measure import medians_by_turns


class Machine:
    """A clock, and calls that take so many milliseconds of it."""

    def __init__(self) -> None:
        self.now, self.made = 0.0, ""

    def clock(self) -> float:
        return self.now

    def call(self, name: str, *milliseconds: float) -> Callable[[], None]:
        takes = list(milliseconds)

        def run() -> None:
            self.made += name
            self.now += (takes.pop(0) if len(takes) > 1 else takes[0]) / 1000

        return run


def test_the_median_of_each_call_in_milliseconds() -> None:
    machine = Machine()
    # Three calls warm up, then five are timed: one slow moment does not count.
    first = machine.call("a", 50, 50, 50, 2, 900, 2, 2, 3)
    second = machine.call("b", 20)
    assert [round(one, 6) for one in medians_by_turns([first, second], 5, machine.clock)] == [2, 20]


def test_calls_take_turns_and_the_order_alternates() -> None:
    machine = Machine()
    medians_by_turns([machine.call("a", 1), machine.call("b", 1)], 3, machine.clock)
    assert machine.made == "ab" * 3 + "abbaab"
