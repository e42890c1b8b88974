"""The log in two shapes: fixed column names of its raw rows, and `Chunk`, its encoded rows on their way to disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa

# Columns of the raw log.
USER, ITEM, TIME, LABEL, EVENT, SPLIT = "_user", "_item", "_time", "_label", "_event", "_split"
WEIGHT, REQUEST, GIVEN = "_weight", "_request", "_given"
RAW_TIME = "_raw_time"  # of an event of another table
CONTEXT, HISTORY, LABELS = "_context.", "_history.", "_labels."
NUMBERS = "_numbers."  # that counters add up, by counter
RAW = "_raw."  # of columns as the log has them

Values = Any  # a numpy array [R] or [R, width]; lists of different lengths as a pa.LargeListArray (64-bit offsets)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Encoded rows of the log, R of them. No array of a chunk is changed once it is made: changes make a new chunk.

    Args:
        user, item: rows of the catalogues, int32 [R].
        time: µs since 1970, int64 [R].
        instant: as of when the row knows the past, µs, int64 [R]: its time, or the earliest time of its request.
        label: float32 [R], NaN where unknown.
        is_event: may stand in histories, bool [R].
        is_row: trains, validates or tests in this build, bool [R]. False for rows before the new days of a windowed
            build, and for events of other tables.
        is_logged: the log recorded it, also before those new days, bool [R]. False for drawn negatives and events of
            other tables: counters do not count these.
        is_from_tail: events that an earlier build made and ended with, bool [R]; None where there are none.
        file: 0, 1 or 2 for the training, validation or test file, int8 [R]; None unless the log is split by files.
        context: context columns by name, int32 [R], int32 [R, max_len] or float32 [R].
        events: columns of the row's event by name, likewise.
        labels: further labels by name, float32 [R], NaN where unknown.
        numbers: what counters add up, by counter, float64 [R], NaN where missing; in the pass that counts alone.
        counters: counters by name as a model sees them, float32 [R].
        raw_counters: the same before they are scaled, float64 [R].
        weight: float32 [R]; None where the contract names none.
        request: number of the row's request, int64 [R], -1 for none; None where the contract names none.
        given: histories that came with the rows, lists of item rows, oldest first; None where the contract names none.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    instant: np.ndarray
    label: np.ndarray
    is_event: np.ndarray
    is_row: np.ndarray
    is_logged: np.ndarray
    is_from_tail: np.ndarray | None = None
    file: np.ndarray | None = None
    context: dict[str, np.ndarray] = field(default_factory=dict)
    events: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    counters: dict[str, np.ndarray] = field(default_factory=dict)
    raw_counters: dict[str, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    request: np.ndarray | None = None
    given: pa.LargeListArray | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.user)

    def take(self, index: np.ndarray) -> Self:
        """The rows at these places, int [N], or where a bool [R] holds."""
        return self._each(lambda values: take(values, index))

    def blank(self, rows: int) -> Self:
        """Empty rows with the columns of these: 0, False, NaN and empty lists."""
        return self._each(lambda values: _blank(values, rows))

    @classmethod
    def concat(cls, chunks: Sequence[Self]) -> Self:
        """The rows of several chunks, which have the same columns, one after the other."""
        parts = [chunk.columns() for chunk in chunks]
        return cls.from_columns({name: concatenated([part[name] for part in parts]) for name in parts[0]})

    def columns(self) -> dict[str, Values]:
        """Every column under one name: that of its field, or `<field>/<name>`."""
        found: dict[str, Values] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict):
                found |= {f"{each.name}/{name}": values for name, values in value.items()}
            elif value is not None:
                found[each.name] = value
        return found

    @classmethod
    def from_columns(cls, columns: Mapping[str, Values]) -> Self:
        """The chunk that `columns` took apart."""
        found: dict[str, Any] = {}
        for key, values in columns.items():
            # Names of fields hold no slash; those of columns may.
            part, slash, name = key.partition("/")
            if slash:
                found.setdefault(part, {})[name] = values
            else:
                found[part] = values
        return cls(**found)

    def _each(self, change: Callable[[Values], Values]) -> Self:
        return self.from_columns({name: change(values) for name, values in self.columns().items()})


def take(values: Values, index: np.ndarray) -> Values:
    """The entries of a column at these places, int [N], or where a bool [R] holds."""
    if not isinstance(values, pa.LargeListArray):
        return values[index]
    places = np.ascontiguousarray(np.flatnonzero(index) if index.dtype == bool else index, np.int64)
    # Not pa.array, whose first call imports pandas.
    return values.take(pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places)]))


def concatenated(columns: Sequence[Values]) -> Values:
    """Columns of one type, one after the other."""
    return pa.concat_arrays(columns) if isinstance(columns[0], pa.LargeListArray) else np.concatenate(columns)


def _blank(like: Values, rows: int) -> Values:
    if isinstance(like, pa.LargeListArray):
        return pa.array([[]] * rows, like.type)
    return np.full((rows, *like.shape[1:]), np.nan if like.dtype.kind == "f" else 0, like.dtype)
