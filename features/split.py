"""Which rows train, which validate, which test: by time with ties on one side, or by user."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.contract import Contract
from features.errors import DataError
from features.log import TIME, USER, Log, distinct
from features.schema import FIRST_VALUE
from features.vocabulary import Vocabulary


@dataclass(frozen=True)
class Splitter:
    """A fitted split.

    Args:
        is_train: the training window, as an expression on the log.
        valid_from, test_from: by time: first µs of each window. By user: shares of the spread of user ids.
        by_time: which of the two.
    """

    is_train: pl.Expr
    valid_from: float
    test_from: float
    by_time: bool

    def assign(self, time_R: np.ndarray, user_R: np.ndarray, users: Vocabulary) -> np.ndarray:
        """0 train, 1 valid, 2 test for each row, from its time (µs) and user row (of `users`)."""
        place = time_R if self.by_time else _spread_rows(user_R, users)
        return (place >= self.valid_from).astype(np.int8) + (place >= self.test_from)


def fit_split(contract: Contract, log: Log) -> Splitter:
    """Find the boundaries: the last shares of the log by rows, or shares of its users.

    Raises:
        DataError: a window would be empty.
    """
    split = contract.split
    if split.by == "user":
        users = distinct(log, USER, contract.interactions.user)
        bounds = (1.0 - split.valid - split.test, 1.0 - split.test)
        trains = users.filter(_spread(users) < bounds[0])
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


def _spread_rows(user_R: np.ndarray, users: Vocabulary) -> np.ndarray:
    distinct, place_R = np.unique(user_R, return_inverse=True)
    return _spread(users.values.gather(distinct - FIRST_VALUE))[place_R]


def _spread(ids: pl.Series) -> np.ndarray:
    """Each id to a fixed place in [0, 1): by its text alone, so that other users' coming and going moves nobody."""
    return np.array([zlib.crc32(str(value).encode()) / 2**32 for value in ids.to_list()])
