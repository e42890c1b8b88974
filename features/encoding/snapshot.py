"""What the counters said at the end of the log, and what they must remember to go on from there.

Shapes: K keys (item or user rows), P events of the period that was not over yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.store.feature_set import read_arrow, write_arrow

COUNTERS = "counters"
STATE = "state.json"


@dataclass(frozen=True)
class CounterState:
    """What a counter remembers at the end of the log; sums are faded to `time`.

    With `as_of: hour` (`day`) the events of the log's newest hour (day) stand apart: nobody knows them before it is
    over. Those of one key are one entry, faded to the newest of them.

    Args:
        count: faded number of events, float64 [K].
        positives: faded sum of their labels, float64 [K].
        time: of the key's newest event, µs, int64 [K]; 0 where there is none.
        open_row: keys of the events of the period that was not over, int64 [P].
        open_time, open_count, open_positives: as `time`, `count` and `positives`, of these, [P].
    """

    count: np.ndarray
    positives: np.ndarray
    time: np.ndarray
    open_row: np.ndarray
    open_time: np.ndarray
    open_count: np.ndarray
    open_positives: np.ndarray

    def with_copies(self, row_N: np.ndarray) -> CounterState:
        """The same with N further keys, each of which begins as the key `row_N[n]` is, int64 [N]."""
        order = np.argsort(row_N, kind="stable")
        first_P, last_P = (np.searchsorted(row_N[order], self.open_row, side) for side in ("left", "right"))
        copies_P = last_P - first_P
        entry_C = np.repeat(np.arange(len(copies_P)), copies_P)
        copy_C = order[np.arange(len(entry_C)) + np.repeat(last_P - np.cumsum(copies_P), copies_P)]
        place = np.r_[np.arange(len(self.open_row)), entry_C]
        return CounterState(
            np.concatenate([self.count, self.count[row_N]]),
            np.concatenate([self.positives, self.positives[row_N]]),
            np.concatenate([self.time, self.time[row_N]]),
            np.concatenate([self.open_row, len(self.count) + copy_C]),
            self.open_time[place],
            self.open_count[place],
            self.open_positives[place],
        )


@dataclass(frozen=True)
class Snapshot:
    """What the counters said at the end of the log: a request that brings no fresher values gets these.

    Args:
        items: raw values by counter, float32, one an item row.
        users: likewise, one a user row.
        states: what each counter needs to go on, by its name.
        mean: the rate that keys without rows have.
        newest: time of the log's newest row, µs.
    """

    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    users: Mapping[str, np.ndarray] = field(default_factory=dict)
    states: Mapping[str, CounterState] = field(default_factory=dict)
    mean: float = 0.0
    newest: int = 0

    def save(self, folder: Path) -> None:
        """Write `counters/`: `items.arrow` and `users.arrow` where there are such counters, and each one's state."""
        for name, columns in {"items": self.items, "users": self.users}.items():
            if columns:
                write_arrow(folder / COUNTERS / f"{name}.arrow", dict(columns))
        if not self.states:
            return
        for number, state in enumerate(self.states.values()):
            known = {"count": state.count, "positives": state.positives, "time": state.time}
            entries = {"row": state.open_row, "time": state.open_time, "count": state.open_count}
            write_arrow(folder / COUNTERS / f"state-{number:02d}.arrow", known)
            write_arrow(folder / COUNTERS / f"open-{number:02d}.arrow", entries | {"positives": state.open_positives})
        # Numbered, since a counter's name may hold what a file's must not.
        record = {"counters": list(self.states), "mean": self.mean, "newest": self.newest}
        (folder / COUNTERS / STATE).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Read what `save` wrote."""
        files = [folder / COUNTERS / f"{name}.arrow" for name in ("items", "users")]
        items, users = (read_arrow(path) if path.is_file() else {} for path in files)
        if not (folder / COUNTERS / STATE).is_file():
            return cls(items, users)
        record = json.loads((folder / COUNTERS / STATE).read_text(encoding="utf-8"))
        states = {name: _state(folder / COUNTERS, number) for number, name in enumerate(record["counters"])}
        return cls(items, users, states, record["mean"], record["newest"])


def _state(folder: Path, number: int) -> CounterState:
    known = read_arrow(folder / f"state-{number:02d}.arrow")
    entries = read_arrow(folder / f"open-{number:02d}.arrow")
    return CounterState(**known, **{f"open_{name}": values for name, values in entries.items()})
