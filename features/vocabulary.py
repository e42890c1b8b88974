"""Raw values to indices: 0 padding, 1 unknown, values from 2. A column at a time, or one by one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.errors import DataError
from features.schema import FIRST_VALUE, UNKNOWN


class Vocabulary:
    """A frozen list of distinct raw values; the value at place i has index i + 2.

    Args:
        values: distinct Int64 or String values, without nulls.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values

    @classmethod
    def fit(cls, raw: pl.Series, min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Values seen at least `min_count` times, the most frequent `max_size` of them, in sorted order."""
        name = raw.name
        counts = canonical(raw).drop_nulls().to_frame("value").group_by("value").len()
        counts = counts.filter(pl.col("len") >= min_count).sort(["len", "value"], descending=[True, False])
        return cls(counts["value"].head(max_size or counts.height).sort().rename(name))

    @property
    def size(self) -> int:
        """Rows an embedding table needs: padding, unknown, and one a value."""
        return len(self.values) + FIRST_VALUE

    @cached_property
    def whole_numbers(self) -> bool:
        """Whether values are integers (else text)."""
        return self.values.dtype == pl.Int64

    @property
    def kind(self) -> str:
        """What its values are, for messages."""
        return "whole numbers" if self.whole_numbers else "text"

    def encode(self, raw: pl.Series) -> np.ndarray:
        """Indices of a column, int32; null and unknown values are 1. Raises DataError for another type."""
        keys = canonical(raw)
        if keys.dtype != self.values.dtype and keys.dtype != pl.Null:
            raise DataError(
                f"column {raw.name!r}: holds {raw.dtype} where {self.kind} was learned from the training window."
            )
        if not len(self.values) or keys.dtype == pl.Null:
            return np.full(len(raw), UNKNOWN, np.int32)
        index = pl.Series(np.arange(FIRST_VALUE, self.size, dtype=np.int32))
        return (
            keys.replace_strict(self.values, index, default=UNKNOWN, return_dtype=pl.Int32)
            .fill_null(UNKNOWN)
            .to_numpy()
        )

    def index(self, value: Any) -> int:
        """Index of one value, as `encode` gives it; None is 1."""
        if isinstance(value, bool) and not self.whole_numbers:
            value = str(value).lower()
        return self._places.get(value, UNKNOWN)

    def is_of_kind(self, value: Any) -> bool:
        """Whether `value` is of the type learned from (`encode` refuses others); None is, and all is if none was."""
        if value is None or isinstance(value, bool) or not len(self.values):
            return True
        return isinstance(value, str) != self.whole_numbers

    def value(self, index: int) -> Any:
        """The raw value of an index from 2."""
        return self.values[int(index) - FIRST_VALUE]

    def save(self, path: Path) -> None:
        """Write as an Arrow file of one column `value`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values.to_frame("value").write_ipc(path, compression="uncompressed")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        return cls(pl.read_ipc(path)["value"])

    @cached_property
    def _places(self) -> dict[Any, int]:
        return {value: i for i, value in enumerate(self.values.to_list(), start=FIRST_VALUE)}


def canonical(raw: pl.Series) -> pl.Series:
    """The column as Int64 or String keys. Whole floats (a csv with blanks) are integers.

    Raises:
        DataError: fractional numbers or such as 64 bits do not hold, or a type that names nothing (lists, dates).
    """
    dtype = raw.dtype
    if dtype == pl.String or dtype == pl.Null:
        return raw
    if dtype in (pl.Categorical, pl.Enum, pl.Boolean):
        return raw.cast(pl.String)
    if dtype.is_integer() or dtype.is_float():
        keys = raw.cast(pl.Int64, strict=False)
        is_key = keys.is_not_null() if dtype.is_integer() else keys.is_not_null() & (raw == raw.floor())
        broken = raw.filter(raw.is_not_null() & ~is_key)
        if broken.len():
            raise DataError(
                f"column {raw.name!r}: {broken.len()} values, e.g. {broken[0]}, are not whole numbers below 2^63 and "
                "cannot be ids or categories. Declare the column `numeric`, round it, or write it as text."
            )
        return keys
    raise DataError(f"column {raw.name!r}: type {dtype} cannot be ids or categories. Use integers or text.")
