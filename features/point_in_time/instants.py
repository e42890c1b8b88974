"""When each request began: its rows are ranked at once, so all of them know what its earliest row knew.

Shapes: R rows of a chunk, Q requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from features.calendar import DAY, HOUR
from features.checks.check_log import Finding
from features.chunk import REQUEST, SPLIT, TIME, USER, Values
from features.contract.contract import Contract
from features.sources.log import Log, chunks
from features.store.shuffle import shuffle_by_key

LONG = HOUR  # a request that lasts longer is reported


@dataclass(frozen=True)
class Instants:
    """The requests whose rows have more than one time, and the earliest of these times.

    A request is a user and a request id; in a log of several files, those of one file; in a log that is split by days,
    those of one UTC day, since days are built apart. Two requests share a number with a chance of 1 in 20,000 for 40
    million requests.

    Args:
        columns: of the log that tell requests apart; empty where there are no such requests.
        number_Q: of each such request, uint64, ascending.
        first_Q: its earliest time, µs.
        lasts_Q: µs until its latest.
    """

    columns: tuple[pl.Expr, ...] = ()
    number_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    first_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    lasts_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def find(cls, contract: Contract, log: Log, shards: int, scratch: Path) -> Instants:
        """Look at every row of the log once, in memory that holds one shard of rows, and the requests that are found.

        Args:
            contract: whether requests and times are declared, and the split.
            log: the checked log.
            shards: how many pieces the rows are compared in.
            scratch: for files; must not exist.
        """
        if contract.interactions.request is None or contract.interactions.time is None:
            return cls()
        empty = cls(request_columns(contract))
        found = [_several_times(shard) for shard in shuffle_by_key(empty.numbered(log), "number", shards, scratch)]
        number_Q, first_Q, lasts_Q = (np.concatenate(column) for column in zip(*found, strict=True))
        if not len(number_Q):
            return cls()
        order = np.argsort(number_Q)
        return cls(empty.columns, number_Q[order], first_Q[order], lasts_Q[order])

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the log that `of` needs beside the time."""
        return names_in(self.columns)

    def of(self, chunk: pl.DataFrame) -> np.ndarray:
        """The time as of which each row of a chunk knows the past: its own, or its request's earliest. int64 [R]."""
        time_R: np.ndarray = chunk[TIME].to_numpy()
        if not len(self.number_Q):
            return time_R
        number_R = self._numbers(chunk)
        place_R = np.minimum(np.searchsorted(self.number_Q, number_R), len(self.number_Q) - 1)
        return np.where(self.number_Q[place_R] == number_R, self.first_Q[place_R], time_R)

    def findings(self, contract: Contract) -> tuple[Finding, ...]:
        """A warning where requests last so long that they are hardly ranked at once."""
        long = int((self.lasts_Q > LONG).sum())
        if not long:
            return ()
        name = str(contract.interactions.request)
        longest = str(timedelta(seconds=int(self.lasts_Q.max()) // 1_000_000))
        message = (
            f"column {name!r}: {long} requests last longer than an hour, the longest {longest}. All rows of one know "
            "no more than its first. A session is no request: leave interactions.request out then; "
            "history.session_gap tells sessions."
        )
        return (Finding("request", "warn", name, long, len(self.lasts_Q), longest, message),)

    def numbered(self, log: Log) -> Iterator[dict[str, Values]]:
        """`number` and `time` of the rows that have a request id, chunk by chunk."""
        for chunk in chunks(log.frame.select(list(dict.fromkeys((TIME, *self.reads)))), log.rows):
            known = chunk.filter(pl.col(REQUEST).is_not_null())
            yield {"number": self._numbers(known), "time": known[TIME].to_numpy()}

    def _numbers(self, chunk: pl.DataFrame) -> np.ndarray:
        return request_numbers(chunk, self.columns)


def request_columns(contract: Contract) -> tuple[pl.Expr, ...]:
    """Columns of the log that tell its requests apart: user and id, and the file, or the day of a log split by days."""
    apart = {"days": (pl.col(TIME) // DAY,), "files": (pl.col(SPLIT),)}.get(contract.split.by, ())
    return (pl.col(USER), pl.col(REQUEST), *apart)


def names_in(columns: tuple[pl.Expr, ...]) -> tuple[str, ...]:
    """The columns that expressions read."""
    return tuple(dict.fromkeys(name for column in columns for name in column.meta.root_names()))


def request_numbers(chunk: pl.DataFrame, columns: tuple[pl.Expr, ...]) -> np.ndarray:
    """The number of each row's request, uint64 [R]; it means nothing where the row has no request id."""
    return chunk.select(column.alias(str(i)) for i, column in enumerate(columns)).hash_rows(seed=1).to_numpy()


def _several_times(shard: dict[str, Values]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, earliest time and duration of each request of a shard that has several times."""
    number_R, time_R = shard["number"], shard["time"]
    order = np.lexsort((time_R, number_R))
    number_R, time_R = number_R[order], time_R[order]
    begins = np.flatnonzero(np.r_[True, number_R[1:] != number_R[:-1]]) if len(order) else np.empty(0, np.int64)
    ends = np.r_[begins[1:], len(order)][: len(begins)] - 1
    lasts = time_R[ends] - time_R[begins]
    several = lasts > 0
    return number_R[begins][several], time_R[begins][several], lasts[several]
