"""Counters one event at a time, in plain Python: what the counters of a whole log must equal."""

from __future__ import annotations

import math
from collections import defaultdict

from features.contract.log import Counter

PERIODS = {"event": 1, "hour": 3_600_000_000, "day": 86_400_000_000}  # µs


class CounterState:
    """A counter of one contract: events are added and values read in order of time."""

    def __init__(self, counter: Counter, mean: float) -> None:
        self.counter = counter
        self.mean = mean
        self._events: dict[object, list[tuple[int, float]]] = defaultdict(list)

    def update(self, key: object, time: int, label: float) -> None:
        """An event (µs since 1970) happened; NaN is an unknown label."""
        if self.counter.value == "count" or not math.isnan(label):
            self._events[key].append((time, label))

    def value(self, key: object, time: int) -> float:
        period = PERIODS[self.counter.as_of]
        instant = time // period * period
        seen = [(self._weight(instant - at), label) for at, label in self._events[key] if at < instant]
        count = sum(weight for weight, _ in seen)
        if self.counter.value == "count":
            return count
        positives = sum(weight * label for weight, label in seen)
        return (positives + self.counter.prior * self.mean) / (count + self.counter.prior)

    def _weight(self, age: int) -> float:
        return 2.0 ** (-age / self.counter.half_life) if self.counter.half_life else 1.0
