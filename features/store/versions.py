"""Item and user tables that change: which version of an id a row reads.

Shapes: I rows of the catalogue, V versions of all of them, U distinct instants that a version begins at.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from features.store.schema import UNKNOWN

ITEM_VERSIONS, USER_VERSIONS = "item_versions.arrow", "user_versions.arrow"
ROW, VALID_FROM = "_row", "_valid_from"
INSTANT = "_instant"  # column of rows, where it is not their time: as of when they read items and users

Columns = Mapping[str, np.ndarray]


class Versions:
    """All versions of the ids of one table, beside the table that holds the latest of each.

    A version holds from its instant on (`valid_from` <= time) until the next one of the same id begins. Columns are
    read in a *stacked* table: the latest version of every id, [I], then all versions, [V]. So row i of it is the
    latest version of id i, as it is without versions.

    Args:
        latest: encoded columns of the table; row i is catalogue row i, [I] or [I, max_len].
        versions: `ROW` (catalogue row, int32, ascending), `VALID_FROM` (µs since 1970, int64, ascending within a row)
            and the encoded columns that change, [V] or [V, max_len].
    """

    def __init__(self, latest: Columns, versions: Columns) -> None:
        self.row_V = versions[ROW]
        self.valid_from_V = versions[VALID_FROM]
        self.size = len(next(iter(latest.values())))
        self._latest = latest
        self._columns = {name: values for name, values in versions.items() if name not in (ROW, VALID_FROM)}
        # Versions of row i are those from place i of this to place i + 1.
        self._start_I = np.searchsorted(self.row_V, np.arange(self.size + 1)).astype(np.int32)
        self._most = int(np.diff(self._start_I).max(initial=0))
        self._instant_U = np.unique(self.valid_from_V)
        self._begins_V = self._begun(self.valid_from_V)

    @cached_property
    def stacked(self) -> dict[str, np.ndarray]:
        """The columns that change, [I + V] or [I + V, max_len]."""
        return {name: np.concatenate([self._latest[name], values]) for name, values in self._columns.items()}

    def find(self, rows: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Rows of the stacked table that hold what was known of some ids at some instants.

        It is the unknown row before the first version of an id begins, and its own row for an id without any version.

        Args:
            rows: catalogue rows, of any shape.
            time: µs since 1970, of a shape that broadcasts to that of `rows`.

        Returns:
            int32, in the shape of `rows`.
        """
        begun = self._begun(time)
        first, end = self._start_I.take(rows), self._start_I.take(rows + 1)
        place = first.copy()  # after the last version that has begun
        # All searches at once, by halving steps within each row's own versions: numpy's search in one table of all
        # versions takes two to six times as long.
        for step in (1 << bit for bit in reversed(range(self._most.bit_length()))):
            ahead = place + np.int32(step)
            has_begun = ahead <= end
            has_begun &= self._begins_V.take(ahead - 1, mode="clip") <= begun
            place += has_begun * np.int32(step)
        found = np.where(place > first, self.size + place - 1, UNKNOWN)
        return np.where(end > first, found, rows).astype(np.int32)

    def _begun(self, time: np.ndarray) -> np.ndarray:
        """How many of all distinct instants have come by these times: small numbers that compare as the times do."""
        return np.searchsorted(self._instant_U, time, side="right").astype(np.int32)


def instants_of(rows: Columns) -> np.ndarray:
    """As of when the rows of a part read items and users, µs: the request's earliest time where rows carry it."""
    return rows.get(INSTANT, rows["time"])


def columns_as_of(
    latest: Columns, versions: Versions | None, rows: np.ndarray, time: np.ndarray
) -> dict[str, np.ndarray]:
    """All columns of some ids as they were at some instants.

    Args:
        latest: the table, row i is catalogue row i.
        versions: of its ids, None where nothing changes.
        rows: catalogue rows, of any shape.
        time: µs since 1970, of a shape that broadcasts to that of `rows`.
    """
    if versions is None:
        return {name: values[rows] for name, values in latest.items()}
    found = versions.find(rows, time)
    stacked = versions.stacked
    return {name: stacked[name][found] if name in stacked else values[rows] for name, values in latest.items()}
