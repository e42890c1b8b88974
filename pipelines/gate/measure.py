"""The time of a request: both bundles by turns, so that whatever else the machine does slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import polars as pl

from ctr.serving.ranker import Ranker
from pipelines.gate.settings import LatencyRules

Call = Callable[[], Any]
Clock = Callable[[], float]
WARM_UP = 3  # calls of each before any is timed


def medians_by_turns(calls: Sequence[Call], repeats: int, clock: Clock = time.perf_counter) -> list[float]:
    """The median time of each call in milliseconds; every turn makes each call once, in alternating order.

    Args:
        calls: to time.
        repeats: turns.
        clock: seconds.
    """
    for _ in range(WARM_UP):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    for _ in range(repeats):
        for place in order:
            begun = clock()
            calls[place]()
            times[place].append((clock() - begun) * 1000)
        order.reverse()
    return [median(of) for of in times]


def latencies(challenger: Ranker, champion: Ranker | None, rules: LatencyRules) -> tuple[float, float | None]:
    """Median milliseconds of one request of the challenger and of the champion, raw ids to ranked candidates.

    The request is one that both take: ids alone, a full history, `rules.candidates` candidates of the challenger's
    catalogue.
    """
    request = plain_request(challenger, rules.candidates)
    rankers = [challenger] if champion is None else [challenger, champion]
    found = medians_by_turns([lambda one=one: one.rank(request) for one in rankers], rules.requests)  # type: ignore[misc]
    return found[0], found[1] if champion is not None else None


def plain_request(ranker: Ranker, candidates: int) -> dict[str, Any]:
    """A request of ids alone: the first user of the catalogue, and its items in order, again where they are few.

    Ids below 0, which no request can name, are passed over.
    """
    encoder = ranker.encoder
    users = _nameable(encoder.users.values)[:1].to_list()
    items = _nameable(encoder.items.values)[: max(candidates, 1000)].to_list()
    longest = encoder.schema.history_max_len

    def some(count: int) -> list[Any]:
        return [items[place % len(items)] for place in range(count)]

    return {"user": users[0] if users else None, "history": some(longest), "candidates": some(candidates)}


def _nameable(ids: pl.Series) -> pl.Series:
    return ids if ids.dtype == pl.String else ids.filter(ids >= 0)
