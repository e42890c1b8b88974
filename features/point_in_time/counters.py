"""Point-in-time counters: how often, how well and how lately a key was shown before a row, as serving will know it.

Shapes: R rows of the log.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import polars as pl

from features.calendar import HOUR
from features.contract.log import Counter
from features.encoding.snapshot import CounterState
from features.errors import DataError

LARGEST = float(np.finfo(np.float32).max)  # values at the end of the log are kept in 32 bits
Times = TypeVar("Times", int, np.ndarray)


def running(
    key_R: np.ndarray,
    time_R: np.ndarray,
    amount_R: np.ndarray,
    counter: Counter,
    mean: float,
    counted_R: np.ndarray | None = None,
    instant_R: np.ndarray | None = None,
) -> np.ndarray:
    """The counter at each row, float64 [R].

    What counts are the rows of the same key strictly before the row's instant; with `as_of: hour` (`day`) strictly
    before the beginning of its UTC hour (day). An event of age a weighs 2^(-a / half_life) at that instant.

        count = Σ weights        rate = (Σ weights · amount + prior · mean) / (Σ weights + prior)
        sum = Σ weights · amount        mean = Σ weights · amount / Σ weights, NaN without rows
        age (since) = hours from the key's first (newest) row to that instant, NaN without rows

    A row without a label counts for a count and for times, since it was shown, and for no rate; one without a number
    for no sum and no mean.

    Args:
        key_R: item or user rows or other keys, int [R], in any order.
        time_R: µs, int64 [R].
        amount_R: labels of a rate, 0 or 1, or numbers of a sum or mean; NaN where unknown, float [R].
        counter: what is counted, how fresh, how fast it fades.
        mean: the rate that a key without rows has: the training window's.
        counted_R: bool [R], rows that count; the others only look. Default all.
        instant_R: µs, int64 [R], as of when each row knows the past; default its time.
    """
    counted_R = np.ones(len(key_R), bool) if counted_R is None else counted_R
    known = _Prefix(key_R[counted_R], time_R[counted_R], amount_R[counted_R], counter)
    return known.at(key_R, as_of(time_R if instant_R is None else instant_R, counter), mean)


def final(
    key_R: np.ndarray,
    time_R: np.ndarray,
    amount_R: np.ndarray,
    counter: Counter,
    mean: float,
    keys: int,
    newest: int,
) -> np.ndarray:
    """What is known of each key right after the log's newest row, float64 [keys].

    Rows of the newest hour (day) count too, whatever `as_of` says: requests come when that period is over.

    Args:
        key_R, time_R, amount_R: rows that count.
        counter, mean: as of `running`.
        keys: how many keys there are.
        newest: time of the log's newest row, µs.
    """
    return _Prefix(key_R, time_R, amount_R, counter).at(np.arange(keys), np.full(keys, newest + 1), mean)


def state(
    key_R: np.ndarray, time_R: np.ndarray, amount_R: np.ndarray, counter: Counter, keys: int, newest: int
) -> CounterState:
    """What a counter must remember at the end of the log, to go on by events.

    Args:
        key_R, time_R, amount_R: rows that count.
        counter: as of `running`.
        keys: how many keys there are.
        newest: time of the log's newest row, µs.
    """
    is_open = time_R >= as_of(newest, counter)
    known = _Prefix(key_R[~is_open], time_R[~is_open], amount_R[~is_open], counter).sums(keys)
    opened = _Prefix(key_R[is_open], time_R[is_open], amount_R[is_open], counter).sums(keys)
    row = np.flatnonzero(opened[0])
    return CounterState(*known, row, opened[2][row], opened[0][row], opened[1][row])


def as_of(time: Times, counter: Counter) -> Times:
    """The instant that a counter looks back from: its time, or the beginning of its hour or day (UTC). µs."""
    return time // counter.period * counter.period


def fade(age: np.ndarray, counter: Counter) -> np.ndarray:
    """What an event of such an age (µs) still weighs."""
    if counter.half_life is None:
        return np.ones(len(age))
    return np.exp2(-age / counter.half_life)


def counting(amount_R: np.ndarray, counter: Counter) -> tuple[np.ndarray, np.ndarray]:
    """Which rows count for a counter, bool [R], and what is summed of them, float64, no NaN."""
    if counter.value in ("count", "age", "since"):  # what is shown counts, whatever came of it
        return np.ones(len(amount_R), bool), np.zeros(len(amount_R))
    known_R = np.isfinite(amount_R)
    return known_R, amount_R[known_R].astype(np.float64)


def value(count: np.ndarray, total: np.ndarray, age: np.ndarray, counter: Counter, mean: float) -> np.ndarray:
    """A counter's value of sums that are faded to the key's newest event.

    Args:
        count: of events; 0 where there is none.
        total: of their amounts.
        age: of the newest event, for `age` of the first, µs.
        counter, mean: as of `running`.
    """
    if counter.grows:
        return np.where(count > 0, age / HOUR, np.nan)
    if counter.value == "mean":  # fades above and below alike
        return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
    faded = fade(age, counter)
    count, total = count * faded, total * faded
    if counter.value == "count":
        return count
    if counter.value == "sum":
        return total
    return (total + counter.prior * mean) / (count + counter.prior)


class _Prefix:
    """Faded sums up to each event of each key, to be asked at any instant."""

    def __init__(self, key: np.ndarray, time: np.ndarray, amount: np.ndarray, counter: Counter) -> None:
        counts, amount = counting(amount, counter)
        key, time = key[counts], time[counts]
        key, time, amount = _in_order(key.astype(np.int64), time, amount)
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][: len(key)])
        if counter.value == "age":  # the first event of a key is all that it is about
            key, time, amount, begins = key[begins], time[begins], amount[begins], np.arange(len(begins))
        self.key, self.time = key, time
        self._keys, self._number = key[begins], np.repeat(np.arange(len(begins)), np.diff(np.r_[begins, len(key)]))
        self.counter = counter
        self.first = begins[self._number]
        self.counts = self._summed(np.ones(len(key)))
        self.totals = self._summed(amount)
        if not (np.abs(self.totals) <= LARGEST).all():
            raise DataError(
                f"counters: values of {counter.number!r} add up to more than a number can hold. Look for what is no "
                "measurement among the largest ones, and leave it out in the expression of `number`."
            )

    def at(self, key_Q: np.ndarray, instant_Q: np.ndarray, mean: float) -> np.ndarray:
        """Values at these instants, of events strictly before them."""
        if not len(self.key):
            nothing = np.zeros(len(key_Q))
            return value(nothing, nothing, nothing, self.counter, mean)
        before_Q = self._events_before(key_Q.astype(np.int64), instant_Q)
        last_Q = np.maximum(before_Q - 1, 0)
        some_Q = (before_Q > 0) & (self.key[last_Q] == key_Q)
        count_Q, total_Q = (np.where(some_Q, sums[last_Q], 0.0) for sums in (self.counts, self.totals))
        age_Q = np.where(some_Q, instant_Q - self.time[last_Q], 0)
        return value(count_Q, total_Q, age_Q, self.counter, mean)

    def sums(self, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each key all events: count and amounts faded to the newest one, float64 [keys], and its time."""
        count, total, time = np.zeros(keys), np.zeros(keys), np.zeros(keys, np.int64)
        last = np.flatnonzero(np.r_[self.key[1:] != self.key[:-1], len(self.key) > 0])
        key = self.key[last]
        count[key], total[key], time[key] = self.counts[last], self.totals[last], self.time[last]
        return count, total, time

    def _events_before(self, key_Q: np.ndarray, instant_Q: np.ndarray) -> np.ndarray:
        """How many events stand before (key, instant) in order of key and time."""
        # Key and time as one number: the number of the key, and how many distinct times come before.
        times = np.unique(self.time)
        place_E = self._number * (len(times) + 1) + np.searchsorted(times, self.time)
        place_Q = np.searchsorted(self._keys, key_Q) * (len(times) + 1) + np.searchsorted(times, instant_Q)
        return np.searchsorted(place_E, place_Q)

    def _summed(self, weight: np.ndarray) -> np.ndarray:
        """Sum over the events of the same key up to each event, faded to its time.

        Fading is a scan that doubles its reach at each step (Hillis and Steele 1986): every factor is at most 1, so
        nothing overflows however long the log is.
        """
        if self.counter.half_life is None:
            # Not one sum over all keys less what came before: a huge number of one would swallow those of the others.
            events = pl.DataFrame({"key": self._number, "weight": weight})
            return events.select(pl.col("weight").cum_sum().over("key"))["weight"].to_numpy()
        place = np.arange(len(weight)) - self.first
        total, reach = weight.copy(), 1
        while reach <= place.max(initial=0):
            later = np.flatnonzero(place >= reach)
            earlier = later - reach
            total[later] += total[earlier] * fade(self.time[later] - self.time[earlier], self.counter)
            reach *= 2
        return total


def _in_order(key: np.ndarray, time: np.ndarray, amount: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events by key and time. Looking whether they are so already takes a fraction of sorting them."""
    same = key[1:] == key[:-1]
    if np.where(same, time[1:] >= time[:-1], key[1:] > key[:-1]).all():
        return key, time, amount
    order = np.lexsort((time, key))
    return key[order], time[order], amount[order]
