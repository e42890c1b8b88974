"""Decides which rows train, validate and test: by time with ties on one side, by days, by user, or by file."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from features.calendar import DAY, FIRST_TIME, day_of
from features.chunk import SPLIT, TIME, USER, Chunk
from features.contract.contract import Contract
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.sources.log import Log, chunks, distinct
from features.store.schema import FIRST_VALUE

BINS = 1 << 16


class Splitter(Protocol):
    """A fitted split."""

    @property
    def is_train(self) -> pl.Expr:
        """The training window, as an expression on the raw log."""

    def assign(self, chunk: Chunk, users: Vocabulary) -> np.ndarray:
        """0 train, 1 valid, 2 test for each row, int8 [R].

        Args:
            chunk: the rows.
            users: catalogue of users, which `chunk.user` counts in.
        """


@dataclass(frozen=True)
class TimeSplitter:
    """Windows of time, one after the other.

    Args:
        valid_from, test_from: first instant of the validation and of the test window, µs since 1970.
        train_from: first instant of the training window, µs since 1970.
    """

    valid_from: int
    test_from: int
    train_from: int = FIRST_TIME

    @property
    def is_train(self) -> pl.Expr:
        """As of `Splitter`."""
        return pl.col(TIME).is_between(self.train_from, self.valid_from, closed="left")

    def assign(self, chunk: Chunk, users: Vocabulary) -> np.ndarray:
        """As of `Splitter`."""
        return _window(chunk.time, self.valid_from, self.test_from)


@dataclass(frozen=True)
class UserSplitter:
    """Shares of the users, whom a hash of their ids places in [0, 1).

    Args:
        is_train: as of `Splitter`.
        valid_from, test_from: places, in [0, 1), at which the validation and the test users begin.
    """

    is_train: pl.Expr
    valid_from: float
    test_from: float

    def assign(self, chunk: Chunk, users: Vocabulary) -> np.ndarray:
        """As of `Splitter`."""
        user_U, place_R = np.unique(chunk.user, return_inverse=True)
        return _window(_place(users.values.gather(user_U - FIRST_VALUE))[place_R], self.valid_from, self.test_from)


@dataclass(frozen=True)
class FileSplitter:
    """A file for each window."""

    @property
    def is_train(self) -> pl.Expr:
        """As of `Splitter`."""
        return pl.col(SPLIT) == 0

    def assign(self, chunk: Chunk, users: Vocabulary) -> np.ndarray:
        """As of `Splitter`."""
        assert chunk.file is not None, "a log that is split by files has the number of its file in each row"
        return chunk.file


def fit_split(contract: Contract, log: Log) -> Splitter:
    """Find the boundaries: the last shares of the log by rows, its last days, or shares of its users.

    Raises:
        DataError: a window would be empty.
    """
    split = contract.split
    if split.by == "files":
        return FileSplitter()
    valid, test = float(split.valid), float(split.test)
    if split.by == "user":
        users = distinct(log, USER, contract.interactions.user)
        valid_from = 1.0 - valid - test
        trains = users.filter(_place(users) < valid_from)
        return UserSplitter(pl.col(USER).cast(trains.dtype).is_in(trains.implode()), valid_from, 1.0 - test)
    if split.by == "days":
        newest = log.frame.select(pl.col(TIME).max()).collect(engine="streaming").item()
        after = (newest // DAY + 1) * DAY
        splitter = TimeSplitter(after - int(valid + test) * DAY, after - int(test) * DAY)
    else:
        ranks = [min(int(log.rows * share), log.rows - 1) for share in (1 - test - valid, 1 - test)]
        splitter = TimeSplitter(*times_at(log, ranks))
    _refuse_empty(log, splitter, whole_days=split.by == "days")
    return splitter


def times_at(log: Log, ranks: list[int]) -> list[int]:
    """The times (µs) at these ranks of the log in order of time, in memory that does not grow with the log.

    A first pass counts rows in bins of equal width; a second one counts, time by time, what lies in the bins of the
    wanted ranks.

    Args:
        log: with at least one row.
        ranks: from 0, each below the number of rows.
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
    bins = np.searchsorted(ends, ranks, side="right").tolist()
    inside = pl.any_horizontal(*(pl.col(TIME).is_between(low + b * width, low + (b + 1) * width - 1) for b in bins))
    exact = times.filter(inside).group_by(TIME).len().collect(engine="streaming").sort(TIME)
    found = []
    for rank, number in zip(ranks, bins, strict=True):
        start = low + number * width
        in_bin = exact.filter(pl.col(TIME).is_between(start, start + width - 1))
        rank_in_bin = rank - (int(ends[number]) - int(counts[number]))
        at = int(np.searchsorted(in_bin["len"].cum_sum().to_numpy(), rank_in_bin, side="right"))
        found.append(int(in_bin[TIME][at]))
    return found


def _refuse_empty(log: Log, splitter: TimeSplitter, whole_days: bool) -> None:
    time = pl.col(TIME)
    counts = log.frame.select(
        (time < splitter.valid_from).sum().alias("training"),
        time.is_between(splitter.valid_from, splitter.test_from, closed="left").sum().alias("validation"),
    ).collect(engine="streaming")
    for window, rows in counts.row(0, named=True).items():
        if rows:
            continue
        if not whole_days:
            raise DataError(
                f"{log.path}: the {window} window is empty: its rows share the instant where the next window "
                f"begins ({log.rows} rows in all). Check the time column and its unit, or change "
                "split.valid and split.test."
            )
        why = f"all {log.rows} rows are of the newest days, which validate and test"
        if window == "validation":
            why = f"no row from {day_of(splitter.valid_from)} to before {day_of(splitter.test_from)}"
        raise DataError(
            f"{log.path}: the {window} window is empty: {why}. Bring the days that are lacking, or change split.valid "
            "and split.test."
        )


def _window(place_R: np.ndarray, valid_from: float, test_from: float) -> np.ndarray:
    return (place_R >= valid_from).astype(np.int8) + (place_R >= test_from)


def _place(ids: pl.Series) -> np.ndarray:
    """The place of each id in [0, 1): a hash of its text alone, so that other users who come or go move nobody."""
    return np.array([zlib.crc32(str(value).encode()) / 2**32 for value in ids.to_list()])
