"""Which rows train, which validate, which test: by time with ties on one side, or by user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.contract import Contract
from features.errors import DataError
from features.log import TIME, USER, Log, value_counts
from features.vocabulary import Vocabulary, canonical

# Knuth's multiplicative constant: consecutive user rows land far apart, by arithmetic that no version changes.
SPREAD = 2654435761


@dataclass(frozen=True)
class Splitter:
    """A fitted split.

    Args:
        is_train: the training window, as an expression on the log.
        valid_from, test_from: by time: first µs of each window. By user: shares of the spread of users.
        by_time: which of the two.
    """

    is_train: pl.Expr
    valid_from: float
    test_from: float
    by_time: bool

    def assign(self, time_R: np.ndarray, user_R: np.ndarray) -> np.ndarray:
        """0 train, 1 valid, 2 test for each row, from its time (µs) and user row."""
        place = time_R if self.by_time else _spread(user_R)
        return (place >= self.valid_from).astype(np.int8) + (place >= self.test_from)


def fit_split(contract: Contract, log: Log) -> Splitter:
    """Find the boundaries: the last shares of the log by rows, or shares of its users.

    Raises:
        DataError: a window would be empty.
    """
    split = contract.split
    if split.by == "user":
        users = Vocabulary(canonical(value_counts(log.frame, USER)["value"]).sort())
        bounds = (1.0 - split.valid - split.test, 1.0 - split.test)
        trains = users.values.filter(_spread(np.arange(len(users.values)) + 2) < bounds[0])
        is_train = pl.col(USER).cast(trains.dtype).is_in(trains.implode())
        return Splitter(is_train, *bounds, by_time=False)
    test_row = min(int(log.rows * (1 - split.test)), log.rows - 1)
    valid_row = min(int(log.rows * (1 - split.test - split.valid)), log.rows - 1)
    ordered = np.partition(log.times, [valid_row, test_row])
    valid_from, test_from = int(ordered[valid_row]), int(ordered[test_row])
    before = {"train": int((log.times < valid_from).sum()), "valid": int((log.times < test_from).sum())}
    if not before["train"] or before["valid"] == before["train"]:
        empty = "training" if not before["train"] else "validation"
        raise DataError(
            f"{log.path}: the {empty} window is empty: its rows share the instant where the next window begins "
            f"({log.rows} rows in all). Check the time column and its unit, or change split.valid and split.test."
        )
    return Splitter(pl.col(TIME) < valid_from, valid_from, test_from, by_time=True)


def _spread(user_R: np.ndarray) -> np.ndarray:
    return (user_R.astype(np.uint64) * SPREAD % 2**32) / 2**32
