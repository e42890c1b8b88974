"""Latency by turns, on a clock that the calls themselves move."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipelines.gate.measure import medians_by_turns, plain_request


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


@pytest.mark.parametrize(
    ("users", "items", "expected"),
    [
        ([-1, 4, 5], [-7, 8, 9], {"user": 4, "history": [8, 9, 8], "candidates": [8, 9]}),
        ([-1], [8], {"user": None, "history": [8, 8, 8], "candidates": [8, 8]}),
        (["a", "b"], ["-1", "x"], {"user": "a", "history": ["-1", "x", "-1"], "candidates": ["-1", "x"]}),
    ],
)
def test_the_request_names_only_ids_that_a_request_can_name(
    users: list[Any], items: list[Any], expected: dict[str, Any]
) -> None:
    values = {"users": SimpleNamespace(values=pl.Series(users)), "items": SimpleNamespace(values=pl.Series(items))}
    ranker: Any = SimpleNamespace(encoder=SimpleNamespace(schema=SimpleNamespace(history_max_len=3), **values))
    assert plain_request(ranker, 2) == expected
