"""Who asks for a page when, and which items a recommender shows: the traffic of the simulated world.

Shapes: Q requests, K slots of a page, U users, J interests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from features.calendar import DAY
from features.simulator.world import DAYS, DEVICES, MAX_POSITION, START, TOPICS, Items, Users, repeated

STEP = DAY // 4  # item popularity and the set of existing items change in steps of six hours
CHUNK_REQUESTS = 40_000
MIN_PAGE = 4
MAX_SESSION = 8  # requests
INTEREST_SHARE = 0.55  # of the slots is filled after the user's interests, the rest by popularity
MAIN_DEVICE_SHARE = 0.8


@dataclass(frozen=True)
class Requests:
    """Page requests in order of time, all [Q]: time in µs, user and device indices, items on the page."""

    time: np.ndarray
    user: np.ndarray
    device: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: slice) -> Requests:
        return Requests(self.time[rows], self.user[rows], self.device[rows], self.size[rows])


def draw_requests(rng: np.random.Generator, users: Users, rows: int) -> Requests:
    """Sessions of page requests, over days and nights and weekends, whose pages add up to exactly `rows`."""
    size = rng.integers(MIN_PAGE, MAX_POSITION + 1, size=rows // MIN_PAGE + 1, dtype=np.int8)
    total = np.cumsum(size, dtype=np.int64)
    count = int(np.searchsorted(total, rows)) + 1
    size = size[:count]
    size[-1] -= total[count - 1] - rows

    length = np.minimum(rng.geometric(0.35, size=count), MAX_SESSION)
    length = length[: int(np.searchsorted(np.cumsum(length), count)) + 1]
    user = _draw(rng, np.cumsum(users.activity), len(length))
    passed = users.joined[user] + (1 - users.joined[user]) * rng.random(len(length))
    start = START + (np.interp(passed, *_traffic()) * DAY).astype(np.int64)
    device = np.where(
        rng.random(len(length)) < MAIN_DEVICE_SHARE,
        users.device[user],
        rng.integers(0, len(DEVICES), size=len(length)),
    )
    session = np.repeat(np.arange(len(length)), length)[:count]
    since = np.cumsum(rng.exponential(80_000, size=count) + 5_000)
    first = np.flatnonzero(np.diff(session, prepend=-1))
    # Logs tell milliseconds.
    at = (start[session] // 1_000 + (since - since[first][session]).astype(np.int64)) * 1_000
    at = _distinct_times(user[session], at)
    order = np.argsort(at, kind="stable")
    session = session[order]
    return Requests(at[order], user[session].astype(np.int32), device[session].astype(np.int8), size)


def _traffic() -> tuple[np.ndarray, np.ndarray]:
    """Share of the window's traffic that has passed (x) at each full hour, in days since its start (y)."""
    hour = np.arange(DAYS * 24)
    by_hour = 1 + 0.8 * np.cos(2 * np.pi * (hour % 24 - 20) / 24)
    weekend = np.where(hour // 24 % 7 >= 5, 1.25, 1.0)
    passed = np.concatenate([[0.0], np.cumsum(by_hour * weekend)])
    return passed / passed[-1], np.arange(DAYS * 24 + 1) / 24


def _distinct_times(user: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The times, later by milliseconds where a user had two requests at once."""
    order = np.lexsort((at, user))
    who, when = user[order], at[order]
    while (same := np.flatnonzero((who[1:] == who[:-1]) & (when[1:] <= when[:-1]))).size:
        when[same + 1] = when[same] + 1_000
    result = np.empty_like(at)
    result[order] = when
    return result


class Shelf:
    """What a recommender can show during one step: items that exist, weighted by their popularity then."""

    def __init__(self, items: Items, step: int) -> None:
        moment = START + step * STEP
        self.popularity = items.popularity(moment)
        self._until = np.cumsum(items.exposure(moment))
        # Items are sorted by topic, so one running sum serves the whole catalogue and each topic.
        edge = np.searchsorted(items.topic, np.arange(TOPICS + 1))
        self._edge = np.concatenate([[0.0], self._until])[edge]

    def pages(self, rng: np.random.Generator, users: Users, user: np.ndarray) -> np.ndarray:
        """A page of distinct items for each request, [Q, K] item indices."""
        shape = (len(user), MAX_POSITION)
        interest_UJ = np.cumsum(users.interest_weight[user], axis=1)
        pick_QK = (rng.random(shape)[:, :, None] * interest_UJ[:, None, -1:] >= interest_UJ[:, None]).sum(axis=2)
        topic_QK = np.take_along_axis(users.interest_topic[user], np.minimum(pick_QK, interest_UJ.shape[1] - 1), axis=1)
        low_QK, high_QK = self._edge[topic_QK], self._edge[topic_QK + 1]
        any_QK = (rng.random(shape) >= INTEREST_SHARE) | (high_QK <= low_QK)
        low_QK[any_QK], high_QK[any_QK] = 0.0, self._until[-1]
        page_QK = self._between(low_QK, high_QK, rng.random(shape))
        while (again_QK := repeated(page_QK)).any():
            page_QK[again_QK] = _draw(rng, self._until, int(again_QK.sum()))
        return page_QK

    def _between(self, low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
        point = np.minimum(low + share * (high - low), np.nextafter(high, low))
        return np.searchsorted(self._until, point, side="right")


def _draw(rng: np.random.Generator, until: np.ndarray, count: int) -> np.ndarray:
    """Indices drawn with replacement by weight; `until` is the running sum of the weights."""
    point = np.minimum(rng.random(count) * until[-1], np.nextafter(until[-1], 0))
    return np.searchsorted(until, point, side="right")


def chunks(items: Items, requests: Requests) -> Iterator[tuple[Shelf, Requests]]:
    """The requests in pieces that are small and lie within one step, each with what could be shown then."""
    step = (requests.time - START) // STEP
    edges = np.searchsorted(step, np.arange(step[-1] + 2))
    for number, (begin, end) in enumerate(pairwise(edges)):
        if begin == end:
            continue
        shelf = Shelf(items, number)
        for first in range(begin, end, CHUNK_REQUESTS):
            yield shelf, requests[first : min(first + CHUNK_REQUESTS, end)]
