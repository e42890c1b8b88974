"""Point-in-time counters: how often and how well an item or user did strictly before a row, as serving will know it.

Shapes: R rows of the log.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from features.calendar import DAY, HOUR
from features.contract.log import Counter
from features.encoding.snapshot import CounterState

PERIODS = {"event": 1, "hour": HOUR, "day": DAY}  # µs

Times = TypeVar("Times", int, np.ndarray)


def running(
    key_R: np.ndarray,
    time_R: np.ndarray,
    label_R: np.ndarray,
    counter: Counter,
    mean: float,
    counted_R: np.ndarray | None = None,
    instant_R: np.ndarray | None = None,
) -> np.ndarray:
    """The counter at each row, float64 [R].

    What counts are the rows of the same key strictly before the row's instant; with `as_of: hour` (`day`) strictly
    before the beginning of its UTC hour (day). An event of age a weighs 2^(-a / half_life) at that instant.

        count = Σ weights        rate = (Σ weights · label + prior · mean) / (Σ weights + prior)

    A row without a label counts for a count, since it was shown, and for no rate.

    Args:
        key_R: item or user rows, int [R], in any order.
        time_R: µs, int64 [R].
        label_R: 0 or 1, NaN where unknown, float [R].
        counter: what is counted, how fresh, how fast it fades.
        mean: the rate that a key without rows has: the training window's.
        counted_R: bool [R], rows that count; the others only look. Default all.
        instant_R: µs, int64 [R], as of when each row knows the past; default its time.
    """
    counted_R = np.ones(len(key_R), bool) if counted_R is None else counted_R
    known = _Prefix(key_R[counted_R], time_R[counted_R], label_R[counted_R], counter)
    return known.at(key_R, as_of(time_R if instant_R is None else instant_R, counter), mean)


def final(
    key_R: np.ndarray,
    time_R: np.ndarray,
    label_R: np.ndarray,
    counter: Counter,
    mean: float,
    keys: int,
    newest: int,
) -> np.ndarray:
    """What is known of each key right after the log's newest row, float64 [keys].

    Rows of the newest hour (day) count too, whatever `as_of` says: requests come when that period is over.

    Args:
        key_R, time_R, label_R: rows that count.
        counter, mean: as of `running`.
        keys: how many keys there are.
        newest: time of the log's newest row, µs.
    """
    return _Prefix(key_R, time_R, label_R, counter).at(np.arange(keys), np.full(keys, newest + 1), mean)


def state(
    key_R: np.ndarray, time_R: np.ndarray, label_R: np.ndarray, counter: Counter, keys: int, newest: int
) -> CounterState:
    """What a counter must remember at the end of the log, to go on by events.

    Args:
        key_R, time_R, label_R: rows that count.
        counter: as of `running`.
        keys: how many keys there are.
        newest: time of the log's newest row, µs.
    """
    is_open = time_R >= as_of(newest, counter)
    known = _Prefix(key_R[~is_open], time_R[~is_open], label_R[~is_open], counter).sums(keys)
    opened = _Prefix(key_R[is_open], time_R[is_open], label_R[is_open], counter).sums(keys)
    row = np.flatnonzero(opened[0])
    return CounterState(*known, row, opened[2][row], opened[0][row], opened[1][row])


def as_of(time: Times, counter: Counter) -> Times:
    """The instant that a counter looks back from: its time, or the beginning of its hour or day (UTC). µs."""
    period = PERIODS[counter.as_of]
    return time // period * period


def fade(age: np.ndarray, counter: Counter) -> np.ndarray:
    """What an event of such an age (µs) still weighs."""
    if counter.half_life is None:
        return np.ones(len(age))
    return np.exp2(-age / counter.half_life)


def value(count: np.ndarray, positives: np.ndarray, counter: Counter, mean: float) -> np.ndarray:
    """A counter's value of faded sums."""
    if counter.value == "count":
        return count
    return (positives + counter.prior * mean) / (count + counter.prior)


class _Prefix:
    """Faded sums up to each event of each key, to be asked at any instant."""

    def __init__(self, key: np.ndarray, time: np.ndarray, label: np.ndarray, counter: Counter) -> None:
        if counter.value == "rate":
            labelled = ~np.isnan(label)
            key, time, label = key[labelled], time[labelled], label[labelled]
        else:
            label = np.zeros(len(key))  # what is shown counts, whatever came of it
        order = np.lexsort((time, key))
        self.key, self.time = key[order].astype(np.int64), time[order]
        self.counter = counter
        self.first = np.searchsorted(self.key, self.key, side="left")
        self.counts = self._summed(np.ones(len(order)))
        self.positives = self._summed(label[order].astype(np.float64))
        # A single NaN would run through all sums after it.
        assert np.isfinite(self.positives).all(), "a label that is counted is not finite"

    def at(self, key_Q: np.ndarray, instant_Q: np.ndarray, mean: float) -> np.ndarray:
        """Values at these instants, of events strictly before them."""
        if not len(self.key):
            nothing = np.zeros(len(key_Q))
            return value(nothing, nothing, self.counter, mean)
        before_Q = self._events_before(key_Q.astype(np.int64), instant_Q)
        last_Q = np.maximum(before_Q - 1, 0)
        some_Q = (before_Q > 0) & (self.key[last_Q] == key_Q)
        fade_Q = np.where(some_Q, fade(instant_Q - self.time[last_Q], self.counter), 0.0)
        return value(self.counts[last_Q] * fade_Q, self.positives[last_Q] * fade_Q, self.counter, mean)

    def sums(self, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each key all events: count and positives faded to the newest one, float64 [keys], and its time."""
        count, positives, time = np.zeros(keys), np.zeros(keys), np.zeros(keys, np.int64)
        last = np.flatnonzero(np.r_[self.key[1:] != self.key[:-1], len(self.key) > 0])
        key = self.key[last]
        count[key], positives[key], time[key] = self.counts[last], self.positives[last], self.time[last]
        return count, positives, time

    def _events_before(self, key_Q: np.ndarray, instant_Q: np.ndarray) -> np.ndarray:
        """How many events stand before (key, instant) in order of key and time."""
        events = len(self.key)
        flag = np.r_[np.ones(events, np.int8), np.zeros(len(key_Q), np.int8)]
        order = np.lexsort((flag, np.r_[self.time, instant_Q], np.r_[self.key, key_Q]))
        is_event = order < events
        before_Q = np.empty(len(key_Q), np.int64)
        before_Q[order[~is_event] - events] = np.cumsum(is_event)[~is_event]
        return before_Q

    def _summed(self, weight: np.ndarray) -> np.ndarray:
        """Sum over the events of the same key up to each event, faded to its time.

        Fading is a scan that doubles its reach at each step (Hillis and Steele 1986): every factor is at most 1, so
        nothing overflows however long the log is.
        """
        if self.counter.half_life is None:
            total = np.cumsum(weight)
            return total - np.where(self.first > 0, total[self.first - 1], 0.0)
        place = np.arange(len(weight)) - self.first
        total, reach = weight.copy(), 1
        while reach <= place.max(initial=0):
            later = np.flatnonzero(place >= reach)
            earlier = later - reach
            total[later] += total[earlier] * fade(self.time[later] - self.time[earlier], self.counter)
            reach *= 2
        return total
