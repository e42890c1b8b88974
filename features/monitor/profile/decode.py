"""What encoded indices and numbers were before encoding, so that feature sets fitted apart can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, TagsEncoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.time import PARTS, DatePartEncoder


@dataclass(frozen=True)
class Scale:
    """A numeric column: `raw = untransformed(value * deviation + mean)`."""

    mean: float
    deviation: float
    transform: str

    def raw(self, values: np.ndarray) -> np.ndarray:
        """Raw numbers, float64 of the same shape, to float32's precision; NaN stays NaN."""
        scaled = values.astype(np.float64) * self.deviation + self.mean
        # A 0 comes back from float32 as a tiny number: what is below a millionth of the deviation is 0.
        scaled[np.abs(scaled) < 1e-6 * self.deviation] = 0.0
        if self.transform != "log1p":
            return scaled
        with np.errstate(over="ignore"):
            return np.expm1(scaled)


class Names(Protocol):
    """Texts by number, made when they are asked for: of millions only some are."""

    def __getitem__(self, number: int, /) -> str:
        """The text of value `number`, from 0."""


@dataclass(frozen=True)
class TextOfValues:
    """Names of a vocabulary's values."""

    values: pl.Series

    def __getitem__(self, number: int, /) -> str:
        """The text of value `number`, from 0."""
        return str(self.values[number])


@dataclass(frozen=True)
class TextOfNumbers:
    """Names of the whole numbers from `first` on."""

    first: int

    def __getitem__(self, number: int, /) -> str:
        """The text of value `number`, from 0."""
        return str(self.first + number)


@dataclass(frozen=True)
class Codes:
    """A column of indices: the text of the value with index 2, 3, …"""

    names: Names


@dataclass(frozen=True)
class Intervals:
    """A column of bucket indices: bucket 2 lies below the first of these edges, the next between the first two, …"""

    edges: Sequence[float]

    @property
    def names(self) -> list[str]:
        """The buckets as intervals."""
        ends = ["-inf", *(f"{edge:.6g}" for edge in self.edges), "inf"]
        return [f"{low} to {high}" for low, high in itertools.pairwise(ends)]


Reader = Scale | Codes | Intervals


def reader_of(encoder: ColumnEncoder | None) -> Reader | None:
    """How to read a column back, by what its encoder learned.

    None where there is no encoder: indices such as semantic codes mean nothing outside their feature set.
    """
    if encoder is None:
        return None
    if isinstance(encoder, NumericEncoder):
        return Scale(encoder.mean, encoder.deviation, encoder.transform)
    if isinstance(encoder, BucketsEncoder):
        return Intervals(encoder.edges.tolist())
    if isinstance(encoder, CategoricalEncoder | TagsEncoder):
        return Codes(TextOfValues(encoder.vocabulary.values))
    # Nothing was learned: a part of a date or a hash has the same index in every feature set.
    first = PARTS[encoder.part][1] if isinstance(encoder, DatePartEncoder) else 0
    return Codes(TextOfNumbers(first))
