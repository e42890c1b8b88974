"""What the counters said at the end of the log, and what they must remember to go on from there.

Shapes: K rows of keys (items, users, or keys of columns that occurred), P events of the period that was not over yet,
R rows that ask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.calendar import HOUR
from features.contract.log import Counter
from features.store.feature_set import read_arrow, write_arrow
from features.store.key_rows import KeyRows, combined

COUNTERS = "counters"
STATE = "state.json"
ITEM_COLUMNS = "item_columns.arrow"


@dataclass(frozen=True)
class CounterState:
    """What a counter remembers at the end of the log; sums are faded to `time`.

    With `as_of: hour` (`day`) the events of the log's newest hour (day) stand apart: nobody knows them before it is
    over. Those of one key are one entry, faded to the newest of them.

    Args:
        count: faded number of events, float64 [K].
        total: faded sum of their labels or numbers, float64 [K].
        time: of the key's newest event, for `age` of its first, µs, int64 [K]; 0 where there is none.
        open_row: keys of the events of the period that was not over, int64 [P].
        open_time, open_count, open_total: as `time`, `count` and `total`, of these, [P].
    """

    count: np.ndarray
    total: np.ndarray
    time: np.ndarray
    open_row: np.ndarray
    open_time: np.ndarray
    open_count: np.ndarray
    open_total: np.ndarray

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
            np.concatenate([self.total, self.total[row_N]]),
            np.concatenate([self.time, self.time[row_N]]),
            np.concatenate([self.open_row, len(self.count) + copy_C]),
            self.open_time[place],
            self.open_count[place],
            self.open_total[place],
        )


@dataclass(frozen=True)
class Snapshot:
    """What the counters said at the end of the log: a request that brings no fresher values gets these.

    Args:
        items: raw values by counter, of those that tell candidates apart, float32 [K]. Its rows are item rows, unless
            `keys` has the counter.
        users: likewise of the others; rows are user rows unless `keys` has the counter.
        states: what each counter needs to go on, by its name.
        mean: the rate of the label that keys without rows have.
        newest: time of the log's newest row, µs.
        means: likewise of the further labels that counters rate, by label.
        keys: rows of the keys of every counter that is not of item or user alone.
        item_columns: for each part of these keys that is of the item, its index in each item row, int64 [items];
            `item` itself stands here too, for an item may have another row later.
        instants: as of when the values of some counters are, µs; the others are as of just after `newest`.
    """

    items: Mapping[str, np.ndarray] = field(default_factory=dict)
    users: Mapping[str, np.ndarray] = field(default_factory=dict)
    states: Mapping[str, CounterState] = field(default_factory=dict)
    mean: float = 0.0
    newest: int = 0
    means: Mapping[str, float] = field(default_factory=dict)
    keys: Mapping[str, KeyRows] = field(default_factory=dict)
    item_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    instants: Mapping[str, int] = field(default_factory=dict)

    def mean_of(self, counter: Counter) -> float:
        """The rate that keys without rows have, of the label that a counter rates."""
        return self.mean if counter.label is None else self.means[counter.label]

    def rows(self, name: str, counter: Counter, item_R: np.ndarray, others: Mapping[str, np.ndarray]) -> np.ndarray:
        """The row that each key of a counter has, int64 [R].

        Args:
            name, counter: which.
            item_R: item rows; [0] for a counter that has nothing of the item.
            others: parts of the key that are of the user (`user`: user rows) or of the context, [R], or [1] for all.
        """
        if name not in self.keys:
            return item_R if counter.of == "item" else others["user"]
        return self.keys[name].rows_of(self.combined(name, counter, item_R, others))

    def combined(self, name: str, counter: Counter, item_R: np.ndarray, others: Mapping[str, np.ndarray]) -> np.ndarray:
        """Each key as one number, of a counter that `keys` has, int64 [R]. Arguments as of `rows`."""
        parts = [self.item_columns[key][item_R] if key in self.item_columns else others[key] for key in counter.keys]
        return combined(parts, self.keys[name].sizes)

    def values(
        self,
        name: str,
        counter: Counter,
        item_R: np.ndarray,
        others: Mapping[str, np.ndarray],
        moment: int | np.ndarray | None,
    ) -> np.ndarray:
        """What is known of each key at a moment, float64 [R].

        Hours since a row go on until the moment (µs); all else is as it was. Other arguments as of `rows`.
        """
        known = self.items[name] if name in self.items else self.users[name]
        found_R = known[self.rows(name, counter, item_R, others)].astype(np.float64)
        if not counter.grows or moment is None:
            return found_R
        since = self.instants.get(name, self.newest + 1)
        return found_R + np.maximum(moment // counter.period * counter.period - since, 0) / HOUR

    def save(self, folder: Path) -> None:
        """Write `counters/`: `items.arrow` and `users.arrow` where there are such counters, and each one's state."""
        for name, columns in {"items": self.items, "users": self.users}.items():
            if of_ids := {one: values for one, values in columns.items() if one not in self.keys}:
                write_arrow(folder / COUNTERS / f"{name}.arrow", of_ids)
        if self.item_columns:
            write_arrow(folder / COUNTERS / ITEM_COLUMNS, dict(self.item_columns))
        if not self.states:
            return
        for number, (name, state) in enumerate(self.states.items()):
            # Numbered, since a counter's name may hold what a file's must not.
            known = {"count": state.count, "total": state.total, "time": state.time}
            entries = {"row": state.open_row, "time": state.open_time, "count": state.open_count}
            write_arrow(folder / COUNTERS / f"state-{number:02d}.arrow", known)
            write_arrow(folder / COUNTERS / f"open-{number:02d}.arrow", entries | {"total": state.open_total})
            if name in self.keys:
                # One key fewer than rows: the last row is of keys that did not occur.
                values = self.items[name] if name in self.items else self.users[name]
                keys = np.append(self.keys[name].keys, -1)
                write_arrow(folder / COUNTERS / f"keys-{number:02d}.arrow", {"key": keys, "value": values})
        sides = {name: "items" if name in self.items else "users" for name in self.keys}
        record = {
            "counters": list(self.states),
            "mean": self.mean,
            "means": dict(self.means),
            "newest": self.newest,
            "keys": {name: {"sizes": rows.sizes, "side": sides[name]} for name, rows in self.keys.items()},
        }
        (folder / COUNTERS / STATE).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Read what `save` wrote."""
        files = [folder / COUNTERS / name for name in ("items.arrow", "users.arrow", ITEM_COLUMNS)]
        items, users, item_columns = (read_arrow(path) if path.is_file() else {} for path in files)
        if not (folder / COUNTERS / STATE).is_file():
            return cls(items, users)
        record = json.loads((folder / COUNTERS / STATE).read_text(encoding="utf-8"))
        names = record["counters"]
        states = {name: _state(folder / COUNTERS, number) for number, name in enumerate(names)}
        keys = {}
        for name, written in record["keys"].items():
            table = read_arrow(folder / COUNTERS / f"keys-{names.index(name):02d}.arrow")
            keys[name] = KeyRows(tuple(written["sizes"]), table["key"][:-1])
            (items if written["side"] == "items" else users)[name] = table["value"]
        known = record["mean"], record["newest"], record["means"]
        return cls(items, users, states, *known, keys, item_columns)


def _state(folder: Path, number: int) -> CounterState:
    known = read_arrow(folder / f"state-{number:02d}.arrow")
    entries = read_arrow(folder / f"open-{number:02d}.arrow")
    return CounterState(**known, **{f"open_{name}": values for name, values in entries.items()})
