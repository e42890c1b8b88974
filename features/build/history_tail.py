"""The newest events of every user, with which a windowed build ends and the histories of the next day begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from features.build.parts import Part
from features.chunk import Chunk
from features.contract.contract import Contract
from features.contract.log import History
from features.errors import DataError
from features.store.feature_set import part_file, read_arrow, write_arrow

TAILS = "history_tails"  # folder in a version
COLUMN = "column."  # in a file of events, before the name of an event column
EVENT_KEY = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}


@dataclass(frozen=True)
class Events:
    """Events by user and time, E of them.

    Args:
        user, item: rows of the catalogues, int32 [E].
        time: µs since 1970, int64 [E].
        columns: event columns by name, encoded.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    columns: dict[str, np.ndarray]

    def take(self, index: np.ndarray) -> Events:
        """The events at these places, or where a bool [E] holds."""
        columns = {name: values[index] for name, values in self.columns.items()}
        return Events(self.user[index], self.item[index], self.time[index], columns)

    def followed_by(self, others: Events) -> Events:
        """These events, then the others, which have the same columns."""
        columns = {name: np.concatenate([values, others.columns[name]]) for name, values in self.columns.items()}
        return Events(
            np.concatenate([self.user, others.user]),
            np.concatenate([self.item, others.item]),
            np.concatenate([self.time, others.time]),
            columns,
        )

    @classmethod
    def of_part(cls, part: Part) -> Events:
        """The events of a part."""
        columns = {name: values for name, values in part.events.items() if name not in EVENT_KEY}
        return cls(part.event_user, part.events["item"], part.events["time"], columns)

    @classmethod
    def read(cls, path: Path) -> Events:
        """Read what `write` wrote."""
        found = read_arrow(path)
        columns = {name.removeprefix(COLUMN): values for name, values in found.items() if name not in EVENT_KEY}
        return cls(found["user"], found["item"], found["time"], columns)

    def write(self, path: Path) -> None:
        """Write one Arrow file: `user`, `item`, `time` and `column.<name>`."""
        columns = {COLUMN + name: values for name, values in self.columns.items()}
        write_arrow(path, {"user": self.user, "item": self.item, "time": self.time} | columns)


@dataclass(frozen=True)
class HistoryTail:
    """The newest events of the users of one shard, as an earlier version ended with them.

    Args:
        source: the file they were read from.
        active: events of the users who have new rows.
        idle: events of all others; the next version gets them unchanged.
    """

    source: Path
    active: Events
    idle: Events

    @classmethod
    def read(cls, version: Path, number: int, user_R: np.ndarray) -> HistoryTail:
        """The tail of a shard.

        Args:
            version: folder of the earlier version.
            number: of the shard.
            user_R: users of the shard's new rows, rows of the catalogue.
        """
        source = version / TAILS / part_file(number)
        events = Events.read(source)
        has_rows = np.zeros(max(int(events.user.max(initial=0)), int(user_R.max(initial=0))) + 1, bool)
        has_rows[user_R] = True
        is_active = has_rows[events.user]
        return cls(source, events.take(is_active), events.take(~is_active))

    def onto(self, shard: Chunk) -> Chunk:
        """The active users' events in front of the shard's rows. Raises DataError for an event that both hold."""
        self._refuse_twice(shard)
        events, count = self.active, len(self.active.user)
        every = np.ones(count, bool)
        past = replace(
            shard.blank(count),
            user=events.user,
            item=events.item,
            time=events.time,
            instant=events.time,
            is_event=every,
            is_logged=every,
            is_from_tail=every,
            events=events.columns,
        )
        # A column that is computed from the order of events is not there yet in the new rows.
        columns = {
            name: shard.events[name] if name in shard.events else np.zeros(shard.rows, values.dtype)
            for name, values in events.columns.items()
        }
        rows = replace(shard, is_from_tail=np.zeros(shard.rows, bool), events=columns)
        return Chunk.concat([past, rows])

    def _refuse_twice(self, shard: Chunk) -> None:
        events = shard.take(shard.is_event)
        carried, logged = (
            pl.DataFrame({key: getattr(rows, key) for key in EVENT_KEY}, schema=EVENT_KEY)
            for rows in (self.active, events)
        )
        twice = carried.join(logged, on=list(EVENT_KEY), how="semi")
        if twice.height:
            user, item, time = twice.row(0)
            raise DataError(
                f"{self.source}: {twice.height} of its events are in the new rows of the log too, e.g. catalogue user "
                f"{user}, item {item}, at {time} µs: histories would hold them twice. Remove that version and build "
                "again."
            )


def write_tail(part: Part, earlier: HistoryTail | None, ends: int, history: History, path: Path) -> None:
    """Write the events of each user that histories of the next day may hold.

    These are the newest `max_len` of those that the next day's first row knows, and all that `history.delay` hides from
    that row and not from a later one.

    Args:
        part: all events of the shard's users who have new rows.
        earlier: the tail that the shard began with; its idle users' events go on.
        ends: first instant after the window, µs since 1970.
        history: longest history, and delay.
        path: of the file.
    """
    events = Events.of_part(part)
    user = events.user
    is_hidden = events.time >= ends - (history.delay or 0)
    hidden_before = np.concatenate([[0], np.cumsum(is_hidden)])
    # Events stand by user and time: counted from the end of each user's, hidden ones left out.
    place, end = np.arange(len(user)), np.searchsorted(user, user, side="right")
    from_end = end - place - (hidden_before[end] - hidden_before[place])
    kept = events.take(is_hidden | (from_end <= history.max_len))
    (kept if earlier is None else earlier.idle.followed_by(kept)).write(path)


def tails_suffice(contract: Contract) -> bool:
    """Whether the newest events of each user are all that later days need of the past.

    They are not with counters, negatives and `repeats: first`, which look back without end; nor with history tables,
    whose events may become known later, with their user's first row in the log.
    """
    log, history = contract.interactions, contract.history
    looks_further = contract.counters or log.negatives or history.tables or history.repeats == "first"
    return not looks_further and history.given is None
