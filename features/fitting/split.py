"""Which rows train, which validate, which test: by time with ties on one side, by days, by user, or by file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.chunk import DAY, SPLIT, TIME, USER
from features.contract.contract import Contract
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.sources.log import Log, chunks, distinct
from features.store.schema import FIRST_VALUE

BINS = 1 << 16


@dataclass(frozen=True)
class Splitter:
    """A fitted split.

    Args:
        is_train: the training window, as an expression on the log.
        valid_from, test_from: by time and by days: first µs of each window. By user: shares of the spread of user
            ids. By files: numbers of the files.
        by: what decides.
    """

    is_train: pl.Expr
    valid_from: float
    test_from: float
    by: str

    def assign(self, rows: Mapping[str, np.ndarray], users: Vocabulary) -> np.ndarray:
        """0 train, 1 valid, 2 test for each row, int8 [R], by its `time` (µs), `user` (row of `users`) or `_split`."""
        if self.by == "files":
            return rows[SPLIT]
        place_R = _spread_rows(rows["user"], users) if self.by == "user" else rows["time"]
        return (place_R >= self.valid_from).astype(np.int8) + (place_R >= self.test_from)


def fit_split(contract: Contract, log: Log) -> Splitter:
    """Find the boundaries: the last shares of the log by rows, its last days, or shares of its users.

    Raises:
        DataError: a window would be empty.
    """
    split = contract.split
    if split.by == "files":
        return Splitter(pl.col(SPLIT) == 0, 1, 2, "files")
    valid, test = float(split.valid), float(split.test)
    if split.by == "user":
        users = distinct(log, USER, contract.interactions.user)
        bounds = (1.0 - valid - test, 1.0 - test)
        trains = users.filter(_spread(users) < bounds[0])
        is_train = pl.col(USER).cast(trains.dtype).is_in(trains.implode())
        return Splitter(is_train, *bounds, "user")
    if split.by == "days":
        newest = log.frame.select(pl.col(TIME).max()).collect(engine="streaming").item()
        after = (newest // DAY + 1) * DAY
        valid_from, test_from = after - int(valid + test) * DAY, after - int(test) * DAY
    else:
        places = [min(int(log.rows * share), log.rows - 1) for share in (1 - test - valid, 1 - test)]
        valid_from, test_from = times_at(log, places)
    _refuse_empty(log, valid_from, test_from)
    return Splitter(pl.col(TIME) < valid_from, valid_from, test_from, split.by)


def times_at(log: Log, places: list[int]) -> list[int]:
    """The times (µs) that stand at these places of the log in order of time, in memory that does not grow with it.

    Counted in bins of equal width; what lies in a wanted bin is then counted time by time.
    """
    times = log.frame.select(TIME)
    low, high = (
        times.select(pl.col(TIME).min().alias("low"), pl.col(TIME).max().alias("high"))
        .collect(engine="streaming")
        .row(0)
    )
    width = (high - low) // BINS + 1
    counts = np.zeros(BINS, np.int64)
    for chunk in chunks(times, log.rows):
        counts += np.bincount((chunk[TIME].to_numpy() - low) // width, minlength=BINS)
    ends = np.cumsum(counts)
    bins = np.searchsorted(ends, places, side="right")
    inside = pl.any_horizontal(
        *(pl.col(TIME).is_between(low + b * width, low + (b + 1) * width - 1) for b in bins.tolist())
    )
    exact = times.filter(inside).group_by(TIME).len().collect(engine="streaming").sort(TIME)
    found = []
    for place, one in zip(places, bins.tolist(), strict=True):
        start = low + one * width
        there = exact.filter(pl.col(TIME).is_between(start, start + width - 1))
        before = place - (int(ends[one]) - int(counts[one]))
        found.append(int(there[TIME][int(np.searchsorted(there["len"].cum_sum().to_numpy(), before, side="right"))]))
    return found


def _refuse_empty(log: Log, valid_from: int, test_from: int) -> None:
    time = pl.col(TIME)
    counts = log.frame.select(
        (time < valid_from).sum().alias("training"),
        ((time >= valid_from) & (time < test_from)).sum().alias("validation"),
    ).collect(engine="streaming")
    for window, rows in counts.row(0, named=True).items():
        if not rows:
            raise DataError(
                f"{log.path}: the {window} window is empty: its rows share the instant where the next window "
                f"begins ({log.rows} rows in all). Check the time column and its unit, or change "
                "split.valid and split.test."
            )


def _spread_rows(user_R: np.ndarray, users: Vocabulary) -> np.ndarray:
    distinct_users, place_R = np.unique(user_R, return_inverse=True)
    return _spread(users.values.gather(distinct_users - FIRST_VALUE))[place_R]


def _spread(ids: pl.Series) -> np.ndarray:
    """Each id to a fixed place in [0, 1): by its text alone, so that other users' coming and going moves nobody."""
    return np.array([zlib.crc32(str(value).encode()) / 2**32 for value in ids.to_list()])
