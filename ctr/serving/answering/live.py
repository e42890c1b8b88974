"""Counters fresher than the bundle's: a thread folds reported events in, and swaps what rankings read by pointer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ctr.serving.answering.events import Events
from ctr.serving.answering.every import Every
from ctr.serving.ranker import Ranker
from features.encoding.snapshot import Snapshot
from features.point_in_time.live_counters import LiveCounter
from features.store.schema import FIRST_VALUE

log = logging.getLogger("quadrank.serve")
Key = tuple[Any, Any, int]  # user, item and time of an event
Labels = tuple[float | None, float]  # that an event was counted with, None before it is; and that it shall have


class LiveCounters:
    """Counters of the version that answers.

    They begin with the state at the end of its log, and take in events after it; before the first of these, rankings
    read the values at the end of the log. An event of the same user, item and time as one of the last ones is a second
    sending and not counted again; a label that it brings, and that differs, takes the place of the one before. Events
    up to the end of the log are in the log. Of users and items that the bundle
    has no row for nothing is counted. An event knows its user, item, time and label: counters by columns of the
    request, of numbers and of further labels stay as the log ended. A version that replaces another gets the remembered
    events too.

    Args:
        seconds: between two looks for events.
        remembered: how many of the newest events are kept.
        clock: seconds since 1970.
    """

    def __init__(self, seconds: float, remembered: int, clock: Callable[[], float] = time.time) -> None:
        self._seconds, self._remembered, self._clock = seconds, remembered, clock
        self._lock = threading.Lock()
        self._seen: dict[Key, float] = {}
        self._waiting: dict[Key, Labels] = {}
        self._version: _Version | None = None
        self._looking = Every("live-counters", self._look)

    def follow(self, ranker: Ranker) -> None:
        """Keep the counters of another version from now on: it knows the events of before when this returns."""
        version = _Version(ranker)
        with self._lock:
            counted = dict(self._seen)
        try:
            version.fold({key: (None, label) for key, label in counted.items()}, int(self._clock() * 1e6))
        except Exception:
            log.exception("counters stay as the log ended until the next look")
            version, counted = _Version(ranker), {}
        with self._lock:
            self._version = version
            # Labels of NaN are alike here, as `add` takes them.
            self._waiting = {
                key: (counted.get(key), label)
                for key, label in self._seen.items()
                if key not in counted or (label != counted[key] and label in (0, 1))
            }

    def add(self, events: Events) -> int:
        """Take events in, to be counted at the next look; returns how many had been there before and change nothing."""
        again = 0
        with self._lock:
            for user, event, label in zip(events.users, events.events, events.label_E.tolist(), strict=True):
                key = (user, event.item, event.time)
                if key in self._seen:
                    known = self._seen[key]
                    # An unknown label (NaN) takes nothing back.
                    if label in (0, 1) and label != known:
                        counted = self._waiting[key][0] if key in self._waiting else known
                        self._seen[key], self._waiting[key] = label, (counted, label)
                    else:
                        again += 1
                    continue
                self._seen[key], self._waiting[key] = label, (None, label)
                if len(self._seen) > self._remembered:
                    del self._seen[next(iter(self._seen))]
        return again

    def fold(self) -> None:
        """Count what waits, and let rankings read the values of this instant."""
        with self._lock:
            version, waiting, self._waiting = self._version, self._waiting, {}
        if version is not None:
            version.fold(waiting, int(self._clock() * 1e6))

    @property
    def newest(self) -> float:
        """Seconds since 1970 of the newest event that is counted, or of the end of the log; 0 without a version."""
        version = self._version
        return 0.0 if version is None else version.newest / 1e6

    def start(self) -> None:
        """Begin to look for events, in a thread of its own."""
        self._looking.start(self._seconds)

    def close(self) -> None:
        """End the looking."""
        self._looking.close()

    def _look(self) -> None:
        try:
            self.fold()
        except Exception:
            log.exception("counters stay as they are")


@dataclass
class _Version:
    """The counters of one version; one thread folds."""

    ranker: Ranker
    newest: int = field(init=False)
    _begun: dict[str, LiveCounter] = field(default_factory=dict, init=False)
    _snapshot: Snapshot = field(init=False)

    def __post_init__(self) -> None:
        # Not `ranker.counters`: after a roll-back these are those of its last look.
        self._snapshot = self.ranker.encoder.snapshot
        windows = self.ranker.bundle.manifest.windows.values()
        self.newest = self._snapshot.newest or max(window.last_time for window in windows)

    def fold(self, waiting: dict[Key, Labels], now: int) -> None:
        """Count events after the end of the log, and let the ranker read the values at `now`, µs."""
        after = {key: labels for key, labels in waiting.items() if key[2] > self._snapshot.newest}
        counters = self.ranker.encoder.contract.live_counters
        if not counters or not (after or self._begun):
            return
        if not self._begun:
            states, mean_of = self._snapshot.states, self._snapshot.mean_of
            self._begun = {name: LiveCounter(one, mean_of(one), states[name]) for name, one in counters.items()}
        if after:
            self._count(after)
            self.newest = max(self.newest, *(time for _, _, time in after))
        values = {name: live.values(now).astype(np.float32) for name, live in self._begun.items()}
        items, users = (
            {name: values.get(name, known) for name, known in side.items()}
            for side in (self._snapshot.items, self._snapshot.users)
        )
        self.ranker.counters = replace(self._snapshot, items=items, users=users, instants=dict.fromkeys(values, now))

    def _count(self, events: dict[Key, Labels]) -> None:
        encoder = self.ranker.encoder
        users, items, times = zip(*events, strict=True)
        before, after = zip(*events.values(), strict=True)
        time_E, label_E = np.array(times, np.int64), np.array(after, np.float64)
        new_E = np.array([label is None for label in before])
        before_E = np.array(before, np.float64)  # None is NaN
        rows = {"user": encoder.users.indices(users), "item": encoder.items.indices(items)}
        user = {name: encoder.user_table[name][rows["user"]] for name in encoder.user}
        sides, counters = encoder.contract.counter_sides, encoder.contract.live_counters
        parts = {"user": rows["user"]} | {key: user[key] for key, side in sides.items() if side == "user" != key}
        for name, live in self._begun.items():
            of = {sides[key] for key in counters[name].keys}
            known = np.logical_and.reduce([rows[side] >= FIRST_VALUE for side in of])
            others = {key: values[known] for key, values in parts.items()}
            row_E = self._rows(name, live, rows["item"][known], others)
            new, old = new_E[known], ~new_E[known]
            live.add(row_E[new], time_E[known][new], label_E[known][new])
            live.change(row_E[old], time_E[known][old], before_E[known][old], label_E[known][old])

    def _rows(self, name: str, live: LiveCounter, item_E: np.ndarray, others: dict[str, np.ndarray]) -> np.ndarray:
        """The rows of events' keys; keys that did not occur before get one."""
        counter, keys = self.ranker.encoder.contract.counters[name], self._snapshot.keys
        if name in keys:
            grown, place = keys[name].with_keys(self._snapshot.combined(name, counter, item_E, others))
            live.move(place, grown.count)
            self._snapshot = replace(self._snapshot, keys={**keys, name: grown})
        return self._snapshot.rows(name, counter, item_E, others)
