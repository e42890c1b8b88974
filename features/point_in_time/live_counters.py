"""Counters kept up event by event from the end of the log, by the formula that the log was counted with.

Shapes: K keys (item or user rows), E events, P waiting entries.
"""

from __future__ import annotations

import numpy as np

from features.contract.log import Counter
from features.encoding.snapshot import CounterState
from features.point_in_time.counters import as_of, fade, value


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
        self._count, self._positives = state.count.astype(np.float64), state.positives.astype(np.float64)
        self._time = state.time.astype(np.int64)
        self._waiting = [(state.open_row, state.open_time, state.open_count, state.open_positives)]

    def add(self, row_E: np.ndarray, time_E: np.ndarray, label_E: np.ndarray) -> None:
        """Take events in.

        Args:
            row_E: keys, int64 [E].
            time_E: µs, int64 [E].
            label_E: 0 or 1, NaN where unknown: such events count for a count and for no rate, float64 [E].
        """
        if self._counter.value == "rate":
            known = ~np.isnan(label_E)
            row_E, time_E, label_E = row_E[known], time_E[known], label_E[known]
        positives_E = label_E if self._counter.value == "rate" else np.zeros(len(row_E))
        self._waiting.append((row_E, time_E, np.ones(len(row_E)), positives_E))

    def values(self, instant: int) -> np.ndarray:
        """The value of each key at an instant (µs), of events strictly before it, float64 [K]."""
        looked_from = as_of(instant, self._counter)
        self._fold(looked_from)
        fade_K = fade(looked_from - self._time, self._counter)
        return value(self._count * fade_K, self._positives * fade_K, self._counter, self._mean)

    def _fold(self, before: int) -> None:
        """Put waiting entries before an instant into the sums."""
        row_P, time_P, count_P, positives_P = (np.concatenate(one) for one in zip(*self._waiting, strict=True))
        due = time_P < before
        self._waiting = [(row_P[~due], time_P[~due], count_P[~due], positives_P[~due])]
        row_P, time_P = row_P[due], time_P[due]
        if not len(row_P):
            return
        touched = np.unique(row_P)
        earlier_T = self._time[touched]
        np.maximum.at(self._time, row_P, time_P)
        fade_T = fade(self._time[touched] - earlier_T, self._counter)
        fade_P = fade(self._time[row_P] - time_P, self._counter)
        for sums, added_P in ((self._count, count_P[due]), (self._positives, positives_P[due])):
            sums[touched] *= fade_T
            np.add.at(sums, row_P, added_P * fade_P)
