"""Negatives for a log of positives alone: items that the user could have chosen at that time, and did not.

They are drawn as of the positive's own time, or that of its request: an item without a positive before it is no
negative yet, and a later positive of the same user does not keep an item from being a negative now. What is drawn
depends on the positive (its raw ids and its time), on the seed and on earlier positives; not on later rows, nor on the
row that an id has in its catalogue. So a longer log draws the same. Shapes: R positives, K negatives of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.contract.log import Negatives
from features.draws import mixed

NONE = -1  # in the result: no negative could be drawn
TRIES = 12  # draws for one place until a legal item is found


@dataclass(frozen=True)
class Drawn:
    """Negatives.

    Args:
        items_RK: item rows, int32 [R, K], `NONE` (-1) where none was found.
        possible_R: how many items (uniform) or positives each positive's were drawn from, int64 [R].
        time_R: times of the positives (µs), int64 [R].
    """

    items_RK: np.ndarray
    possible_R: np.ndarray
    time_R: np.ndarray


def draw_negatives(
    user_R: np.ndarray,
    item_R: np.ndarray,
    time_R: np.ndarray,
    spec: Negatives,
    user_hash: np.ndarray,
    item_hash: np.ndarray,
    instant_R: np.ndarray | None = None,
) -> Drawn:
    """Draw `spec.per_positive` items for each positive.

    - `uniform`: every item with a positive before this one's time, with equal chance.
    - `popularity`: the item of a random positive before that time: in proportion to its positives.
    - `in_window`: the same, of the last `window` alone.

    A draw is repeated while it is the positive itself or, with `exclude: seen`, an item of the user's positives up to
    (and at) that time, at most `TRIES` times. The negatives of one positive differ from each other.

    Args:
        user_R, item_R: rows of users and items, int [R].
        time_R: times (µs), int64 [R], in any order.
        spec: how many, how, which seed.
        user_hash, item_hash: 64 bits of the raw id of each row, uint64 [users], uint64 [items].
        instant_R: as of when each positive knows the past (µs), int64 [R]: items of positives before it can be
            drawn. Its own time still bounds the user's positives. Default its time.
    """
    rows = len(item_R)
    identity_R = mixed(mixed(mixed(np.uint64(spec.seed), user_hash[user_R]), item_hash[item_R]), time_R)
    instant_R = time_R if instant_R is None else instant_R
    by_time = np.argsort(time_R, kind="stable")
    sorted_time = time_R[by_time]
    # Strictly before: ties of the positive's own instant are not there yet.
    before_R = np.searchsorted(sorted_time, instant_R, side="left")
    if spec.how == "uniform":
        pool, high_R = _by_first_time(item_R, instant_R, by_time, sorted_time)
        low_R = np.zeros(rows, np.int64)
    else:
        pool, high_R = item_R[by_time], before_R
        low_R = np.zeros(rows, np.int64)
        if spec.how == "in_window":
            low_R = np.searchsorted(sorted_time, instant_R - spec.window, side="left")
    seen = _Seen(user_R, item_R, time_R) if spec.exclude == "seen" else None
    result_RK = np.full((rows, spec.per_positive), NONE, np.int32)
    for k in range(spec.per_positive):
        open_R = np.flatnonzero(high_R > low_R)
        for attempt in range(TRIES):
            if not len(open_R):
                break
            width = high_R[open_R] - low_R[open_R]
            share = mixed(identity_R[open_R], np.uint64(k * TRIES + attempt)) / 2.0**64
            drawn = pool[low_R[open_R] + np.minimum((share * width).astype(np.int64), width - 1)]
            legal = (drawn != item_R[open_R]) & ~(result_RK[open_R, :k] == drawn[:, None]).any(axis=1)
            if seen is not None:
                legal &= ~seen.by(user_R[open_R], drawn, time_R[open_R])
            result_RK[open_R[legal], k] = drawn[legal]
            open_R = open_R[~legal]
    return Drawn(result_RK, high_R - low_R, time_R)


def _by_first_time(
    item_R: np.ndarray, instant_R: np.ndarray, by_time: np.ndarray, sorted_time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct items in order of first appearance, and how many of them had appeared before each row's instant."""
    ordered = item_R[by_time]
    _, first = np.unique(ordered, return_index=True)
    first.sort()
    pool = ordered[first]
    return pool, np.searchsorted(sorted_time[first], instant_R, side="left")


class _Seen:
    """Answers whether a user had a positive of an item up to a time."""

    def __init__(self, user_R: np.ndarray, item_R: np.ndarray, time_R: np.ndarray) -> None:
        self._items = int(item_R.max()) + 1 if len(item_R) else 1
        key_R = user_R.astype(np.int64) * self._items + item_R
        order = np.lexsort((time_R, key_R))
        key, time = key_R[order], time_R[order]
        first = np.r_[True, key[1:] != key[:-1]] if len(key) else np.empty(0, bool)
        self._key, self._first_time = key[first], time[first]

    def by(self, user_Q: np.ndarray, item_Q: np.ndarray, time_Q: np.ndarray) -> np.ndarray:
        """bool [Q]."""
        key_Q = user_Q.astype(np.int64) * self._items + item_Q
        place_Q = np.minimum(np.searchsorted(self._key, key_Q), len(self._key) - 1)
        return (self._key[place_Q] == key_Q) & (self._first_time[place_Q] <= time_Q)
