"""Encoders of numbers: standardised, or as the bucket they fall in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import polars as pl

from features.contract.columns import Buckets, Numeric, Residual
from features.encoding.base import ColumnEncoder
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.schema import FIRST_VALUE, UNKNOWN, Field

BINS = 24  # pieces of a number, each with as many training values


class NumericEncoder(ColumnEncoder):
    """A number, clipped, transformed and standardised by the training window; float32 [rows], missing is NaN.

    Args:
        transform: `none` or `log1p`.
        mean, deviation: of the training values, clipped and transformed; 0 and 1 leave numbers as they are.
        clip: least and greatest value.
        edges: quantiles of the training values as they are encoded, ascending; what models cut numbers at.
    """

    kind = "numeric"

    def __init__(
        self,
        transform: str,
        mean: float,
        deviation: float,
        clip: tuple[float, float] | None = None,
        edges: Sequence[float] = (),
    ) -> None:
        self.transform = transform
        self.mean = mean
        self.deviation = deviation
        self.clip = clip
        self.edges = tuple(edges)

    @classmethod
    def fit(cls, raw: pl.Series, spec: Numeric | Residual, times: pl.Series | None = None) -> Self:
        """Learn mean and deviation from training values; a constant column gets deviation 1."""
        if isinstance(spec, Residual) or spec.scale == "none":
            clip, transform = (None, "none") if isinstance(spec, Residual) else (spec.clip, spec.transform)
            unscaled = cls(transform, 0.0, 1.0, clip)
            return cls(transform, 0.0, 1.0, clip, _quantiles(unscaled.encode(raw)))
        unscaled = cls(spec.transform, 0.0, 1.0, spec.clip)
        values = unscaled._transformed(numbers(raw))
        values = values[np.isfinite(values)]
        if not len(values):
            return unscaled
        # Not the deviation itself: rounding makes that of a constant 0.1 1e-17, and every other value enormous.
        varies = values.min() < values.max()
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(values.mean()), float(values.std())
        if not np.isfinite(deviation):
            raise DataError(
                f"column {raw.name!r}: numbers as large as {np.abs(values).max():g} have no mean and deviation. "
                "Declare `clip`, or make them missing where they mean so."
            )
        scaled = cls(spec.transform, mean, deviation if varies and deviation > 0 else 1.0, spec.clip)
        scaled.edges = _quantiles(scaled.encode(raw))
        return scaled

    @property
    def is_blank(self) -> bool:
        """Whether it saw no number."""
        return not self.edges

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="numeric", edges=self.edges)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, float32 [rows]."""
        return self._standardised(numbers(raw))

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, float32 [1]; None is missing."""
        return self._standardised(np.array([np.nan if value is None else value], np.float64))

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several values, float32 [N]."""
        return self._standardised(np.asarray(values, np.float64))

    def raw_value(self, encoded: Any) -> Any:
        """The number before scaling, to float32's precision."""
        (number,) = self.raw_values(np.array([encoded])).tolist()
        return None if np.isnan(number) else number

    def raw_values(self, encoded: np.ndarray) -> np.ndarray:
        """The numbers before scaling, float64 [N]; NaN is missing."""
        with np.errstate(over="ignore"):
            number = encoded.astype(np.float64) * self.deviation + self.mean
            number = np.expm1(number) if self.transform == "log1p" else number
        # Rounding may lift the greatest number over what a float holds, and a request takes no infinity.
        return np.clip(number, -sys.float_info.max, sys.float_info.max)

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding or unknown table row: missing."""
        return np.array([np.nan], np.float32)

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """Transform, mean, deviation and clip."""
        learned = {"transform": self.transform, "mean": self.mean, "deviation": self.deviation}
        return learned | {"clip": list(self.clip) if self.clip else None, "edges": list(self.edges)}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        clip = learned["clip"]
        scale = learned["transform"], learned["mean"], learned["deviation"]
        return cls(*scale, tuple(clip) if clip else None, learned["edges"])

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            result = ((self._transformed(values) - self.mean) / self.deviation).astype(np.float32)
        return np.where(np.isfinite(result), result, np.float32(np.nan))

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        if self.clip is not None:
            # Infinity is no large number but a missing one, so it is not clipped to the greatest.
            values = np.where(np.isfinite(values), np.clip(values, *self.clip), np.nan)
        if self.transform == "log1p":
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(values > -1, np.log1p(values), np.nan)
        return values


class BucketsEncoder(ColumnEncoder):
    """A number to 2 + how many edges it reaches; int32 [rows], missing is 1.

    Args:
        edges: ascending; a value equal to an edge lies above it.
        is_blank: whether there was no number to learn them from; of a constant there are none either.
    """

    kind = "buckets"
    is_blank = False

    def __init__(self, edges: Sequence[float], is_blank: bool = False) -> None:
        self.edges = np.array(edges, np.float64)
        self.is_blank = is_blank

    @classmethod
    def fit(cls, raw: pl.Series, spec: Buckets, times: pl.Series | None = None) -> Self:
        """Learn quantiles of the training values; those that coincide are one edge."""
        if spec.edges is not None:
            numbers(raw)
            return cls(spec.edges)
        values = numbers(raw)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls([], is_blank=True)
        inner = np.quantile(values, np.arange(1, spec.count) / spec.count, method="inverted_cdf")
        # An edge at the smallest value would leave the bucket below it empty.
        return cls(np.unique(inner[inner > values.min()]).tolist())

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="categorical", size=len(self.edges) + 1 + FIRST_VALUE)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows]."""
        return self._buckets(numbers(raw)).astype(np.int32)

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, int64 [1]; None is missing."""
        return self._buckets(np.array([np.nan if value is None else value], np.float64))

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several values, int64 [N]."""
        return self._buckets(np.asarray(values, np.float64))

    def raw_value(self, encoded: Any) -> Any:
        """The bucket's lower edge; a number below the first edge for the first bucket."""
        if encoded < FIRST_VALUE:
            return None
        below = int(encoded) - FIRST_VALUE
        if below:
            return float(self.edges[below - 1])
        return float(np.nextafter(self.edges[0], -np.inf)) if len(self.edges) else 0.0

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([index], np.int32)

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """The edges, and whether there was nothing to learn them from."""
        return {"edges": self.edges.tolist(), "is_blank": self.is_blank}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        return cls(learned["edges"], learned.get("is_blank", False))

    def _buckets(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(values), UNKNOWN, FIRST_VALUE + np.searchsorted(self.edges, values, side="right"))


def _quantiles(encoded: np.ndarray) -> tuple[float, ...]:
    """The least, the greatest and the inner quantiles of the values that are there; those that coincide are one."""
    values = encoded[~np.isnan(encoded)]
    if not len(values):
        return ()
    shares = np.arange(BINS + 1) / BINS
    return tuple(np.unique(np.quantile(values, shares, method="inverted_cdf")).tolist())


def numbers(raw: pl.Series) -> np.ndarray:
    """A numeric column as float64 [rows], missing as NaN. Raises DataError for another type."""
    if not (raw.dtype.is_numeric() or raw.dtype in (pl.Boolean, pl.Null)):
        some = raw.drop_nulls()
        example = f", e.g. {some[0]!r}" if len(some) else ""
        raise DataError(
            f"column {raw.name!r}: declared a number but is {raw.dtype}{example}. Declare `categorical`, or cast it."
        )
    return raw.cast(pl.Float64).fill_null(float("nan")).to_numpy()
