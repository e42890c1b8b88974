"""Counters one event at a time, in plain Python: what the counters of a whole log must equal."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product

from features.contract.log import Counter

VALUES = ("count", "rate", "sum", "mean", "age", "since")
PERIODS = {"event": 1, "hour": 3_600_000_000, "day": 86_400_000_000}  # µs


class CounterState:
    """A counter of one contract: events are added and values read in order of time."""

    def __init__(self, counter: Counter, mean: float) -> None:
        self.counter = counter
        self.mean = mean
        self._events: dict[object, list[tuple[int, float]]] = defaultdict(list)

    def update(self, key: object, time: int, amount: float) -> None:
        """An event (µs since 1970) happened; NaN is an unknown label or number."""
        if self.counter.value in ("count", "age", "since") or not math.isnan(amount):
            self._events[key].append((time, amount))

    def value(self, key: object, time: int) -> float:
        period = PERIODS[self.counter.as_of]
        return self.value_from(key, time // period * period)

    def value_from(self, key: object, instant: int) -> float:
        """The value of events strictly before this instant, however fresh the counter is declared."""
        times = [at for at, _ in self._events[key] if at < instant]
        if self.counter.value in ("age", "since"):
            oldest_or_newest = min if self.counter.value == "age" else max
            return (instant - oldest_or_newest(times)) / 3_600_000_000 if times else math.nan
        seen = [(self._weight(instant - at), amount) for at, amount in self._events[key] if at < instant]
        count = sum(weight for weight, _ in seen)
        if self.counter.value == "count":
            return count
        total = sum(weight * amount for weight, amount in seen)
        if self.counter.value == "sum":
            return total
        if self.counter.value == "mean":
            return total / count if count else math.nan
        return (total + self.counter.prior * self.mean) / (count + self.counter.prior)

    def _weight(self, age: int) -> float:
        return 2.0 ** (-age / self.counter.half_life) if self.counter.half_life else 1.0


def every_counter(of: str = "item") -> list[Counter]:
    """One of each value, freshness and speed of fading that can be declared."""
    found = []
    for value, as_of, half_life in product(VALUES, PERIODS, (None, "2h", "3d")):
        if value in ("age", "since") and half_life is not None:
            continue
        number = "depth" if value in ("sum", "mean") else None
        counter = {"of": of, "value": value, "as_of": as_of, "half_life": half_life, "prior": 3.0, "number": number}
        found.append(Counter.model_validate(counter))
    return found
