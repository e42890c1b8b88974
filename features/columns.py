"""Encoders of one column each: categorical, tags, numeric. Fitted once, the same offline and online."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from features.contract_columns import Categorical, Column, Numeric, Tags
from features.errors import DataError, named
from features.schema import PADDING, UNKNOWN, Field
from features.vocabulary import Vocabulary


class CategoricalEncoder:
    """A value to its index in a vocabulary; int32 [rows]."""

    kind = "categorical"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def fit(cls, raw: pl.Series, spec: Categorical) -> CategoricalEncoder:
        """Learn the vocabulary from training values."""
        return cls(Vocabulary.fit(raw, spec.min_count, spec.max_size))

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="categorical", size=self.vocabulary.size)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows]."""
        return self.vocabulary.encode(raw)

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, int64 [1]."""
        return np.array([self.vocabulary.index(value)], np.int64)

    def blank(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([index], np.int32)


class TagsEncoder:
    """A list of values to the indices of the first `max_len` known ones; int32 [rows, max_len].

    A list with no known tag is [1, 0, …]: unknown, which is not the same as padding.
    """

    kind = "tags"

    def __init__(self, vocabulary: Vocabulary, max_len: int) -> None:
        self.vocabulary = vocabulary
        self.max_len = max_len

    @classmethod
    def fit(cls, raw: pl.Series, spec: Tags) -> TagsEncoder:
        """Learn the vocabulary from training lists."""
        tags = _lists(raw).explode().drop_nulls().rename(raw.name)
        return cls(Vocabulary.fit(tags, spec.min_count, spec.max_size), spec.max_len)

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="tags", size=self.vocabulary.size, max_len=self.max_len)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows, max_len]."""
        result = np.zeros((len(raw), self.max_len), np.int32)
        long = pl.DataFrame({"row": np.arange(len(raw), dtype=np.int64), "tag": _lists(raw)}).explode("tag")
        rows, index = long["row"].to_numpy(), self.vocabulary.encode(long["tag"].rename(raw.name))
        rows, index = rows[index != UNKNOWN], index[index != UNKNOWN]
        first = np.searchsorted(rows, rows, side="left")
        place = np.arange(len(rows)) - first
        kept = place < self.max_len
        result[rows[kept], place[kept]] = index[kept]
        result[result[:, 0] == PADDING, 0] = UNKNOWN
        return result

    def encode_one(self, value: Any) -> np.ndarray:
        """One list, int64 [1, max_len]."""
        known = [i for i in map(self.vocabulary.index, value or []) if i != UNKNOWN][: self.max_len]
        result = np.zeros((1, self.max_len), np.int64)
        result[0, : len(known)] = known
        if not known:
            result[0, 0] = UNKNOWN
        return result

    def blank(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([[index] + [PADDING] * (self.max_len - 1)], np.int32)


class NumericEncoder:
    """A number, transformed and standardised by the training window; float32 [rows], missing is NaN."""

    kind = "numeric"

    def __init__(self, transform: str, mean: float, deviation: float) -> None:
        self.transform = transform
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def fit(cls, raw: pl.Series, spec: Numeric) -> NumericEncoder:
        """Learn mean and deviation from training values; a constant column gets deviation 1."""
        values = _transformed(_numbers(raw), spec.transform)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(spec.transform, 0.0, 1.0)
        # Not the deviation itself: rounding makes that of a constant 0.1 1e-17, and every other value enormous.
        varies = values.min() < values.max()
        return cls(spec.transform, float(values.mean()), float(values.std()) if varies else 1.0)

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="numeric")

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, float32 [rows]."""
        return self._standardised(_numbers(raw))

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, float32 [1]; None is missing."""
        return self._standardised(np.array([np.nan if value is None else value], np.float64))

    def blank(self, index: int) -> np.ndarray:
        """The entry of a padding or unknown table row: missing."""
        return np.array([np.nan], np.float32)

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            result = ((_transformed(values, self.transform) - self.mean) / self.deviation).astype(np.float32)
        return np.where(np.isfinite(result), result, np.float32(np.nan))


ColumnEncoder = CategoricalEncoder | TagsEncoder | NumericEncoder


def fit_column(raw: pl.Series, spec: Column, path: str) -> ColumnEncoder:
    """Fit the encoder that a column's declared type asks for. Raises DataError naming file and column."""
    with named(path):
        if isinstance(spec, Categorical):
            return CategoricalEncoder.fit(raw, spec)
        if isinstance(spec, Tags):
            return TagsEncoder.fit(raw, spec)
        return NumericEncoder.fit(raw, spec)


def _lists(raw: pl.Series) -> pl.Series:
    dtype = raw.dtype
    if isinstance(dtype, pl.List):
        return raw
    if isinstance(dtype, pl.Array):
        return raw.cast(pl.List(dtype.inner))
    raise DataError(f"column {raw.name!r}: declared `tags`, which are lists, but holds {dtype}. Declare `categorical`.")


def _numbers(raw: pl.Series) -> np.ndarray:
    if not (raw.dtype.is_numeric() or raw.dtype in (pl.Boolean, pl.Null)):
        some = raw.drop_nulls()
        example = f", e.g. {some[0]!r}" if len(some) else ""
        raise DataError(
            f"column {raw.name!r}: declared `numeric` but is {raw.dtype}{example}. Declare `categorical`, or cast it."
        )
    return raw.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _transformed(values: np.ndarray, transform: str) -> np.ndarray:
    if transform == "log1p":
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(values > -1, np.log1p(values), np.nan)
    return values
