"""Counters kept up event by event from the end of the log, by the formula that the log was counted with.

Shapes: K rows of keys, E events, P waiting entries.
"""

from __future__ import annotations

import numpy as np

from features.contract.log import Counter
from features.encoding.snapshot import CounterState
from features.point_in_time.counters import as_of, counting, fade, value


class LiveCounter:
    """One counter: events are added in any order, and values are asked for at instants that do not go back.

    An event that comes late counts from then on as if it had come in time. Each added event counts: who adds one twice
    counts it twice, as a log does that holds it twice.

    Args:
        counter: what is counted, how fresh, how fast it fades.
        mean: the rate that keys without events have.
        state: at the end of the log; not changed.
    """

    def __init__(self, counter: Counter, mean: float, state: CounterState) -> None:
        self._counter, self._mean = counter, mean
        self._count, self._total = state.count.astype(np.float64), state.total.astype(np.float64)
        self._time = state.time.astype(np.int64)
        self._waiting = [(state.open_row, state.open_time, state.open_count, state.open_total)]

    def add(self, row_E: np.ndarray, time_E: np.ndarray, amount_E: np.ndarray) -> None:
        """Take events in.

        Args:
            row_E: of their keys, int64 [E].
            time_E: µs, int64 [E].
            amount_E: labels or numbers, NaN where unknown: such events count for what needs none, float64 [E].
        """
        counts_E, total_E = counting(amount_E, self._counter)
        row_E, time_E = row_E[counts_E], time_E[counts_E]
        self._waiting.append((row_E, time_E, np.ones(len(row_E)), total_E))

    def change(self, row_E: np.ndarray, time_E: np.ndarray, before_E: np.ndarray, after_E: np.ndarray) -> None:
        """Let events that were added have another amount: from then on, as if they had come with it.

        Args:
            row_E, time_E: as they were added.
            before_E: amounts that they have now, NaN where unknown, float64 [E].
            after_E: those that they get, likewise.
        """
        count_E, total_E = (
            after - before for before, after in zip(self._sums(before_E), self._sums(after_E), strict=True)
        )
        changed_E = (count_E != 0) | (total_E != 0)
        self._waiting.append((row_E[changed_E], time_E[changed_E], count_E[changed_E], total_E[changed_E]))

    def move(self, place_K: np.ndarray, rows: int) -> None:
        """Give each key another row, int64 [K], out of so many; rows that none gets are of keys without events."""
        for name in ("_count", "_total", "_time"):
            before = getattr(self, name)
            after = np.zeros(rows, before.dtype)
            after[place_K] = before
            setattr(self, name, after)
        self._waiting = [(place_K[row_P], *others) for row_P, *others in self._waiting]

    def values(self, instant: int) -> np.ndarray:
        """The value of each key at an instant (µs), of events strictly before it, float64 [K]."""
        looked_from = as_of(instant, self._counter)
        self._fold(looked_from)
        return value(self._count, self._total, looked_from - self._time, self._counter, self._mean)

    def _sums(self, amount_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each event adds to the count and to the total, float64 [E]."""
        counts_E, added = counting(amount_E, self._counter)
        total_E = np.zeros(len(amount_E))
        total_E[counts_E] = added
        return counts_E.astype(np.float64), total_E

    def _fold(self, before: int) -> None:
        """Put waiting entries before an instant into the sums."""
        row_P, time_P, count_P, total_P = (np.concatenate(one) for one in zip(*self._waiting, strict=True))
        due = time_P < before
        self._waiting = [(row_P[~due], time_P[~due], count_P[~due], total_P[~due])]
        row_P, time_P = row_P[due], time_P[due]
        if not len(row_P):
            return
        if self._counter.value == "age":  # of the first event alone
            self._time[row_P[self._count[row_P] == 0]] = before
            np.minimum.at(self._time, row_P, time_P)
            self._count[row_P] = 1
            return
        touched = np.unique(row_P)
        earlier_T = self._time[touched]
        np.maximum.at(self._time, row_P, time_P)
        fade_T = fade(self._time[touched] - earlier_T, self._counter)
        fade_P = fade(self._time[row_P] - time_P, self._counter)
        for sums, added_P in ((self._count, count_P[due]), (self._total, total_P[due])):
            sums[touched] *= fade_T
            np.add.at(sums, row_P, added_P * fade_P)
