"""Counts of a column by bin, by period and by group of users: all that drift needs to know of the rows, and small.

Shapes: R rows, L values a row (tags; else 1), K bins of a column, P periods, G groups of users.

Bins must mean the same in two feature sets that know nothing of each other, so none of them depends on a
vocabulary's numbering or on a scale fitted on training rows:

- *values* are named. The most frequent ones have a bin each; the others share `rest` bins, told apart by the
  CRC-32 of their text. A value named in one set alone is found again in the rest bin of the other.
- *numbers* lie on a grid in asinh(raw value): fine near 0 as the numbers are, logarithmic far from it. Its width
  is a power of two and its origin fixed, so that of any two grids the coarser is a union of bins of the finer.
- *edges* are those of a bucketed column, whose raw values are gone.

The last bin always counts rows whose value is unknown or missing.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from features.contract.settings import Settings
from features.monitor.profile.decode import Names
from features.store.schema import FIRST_VALUE, UNKNOWN

GROUPS = 16  # users of one group share the remainder of their row
PERIODS = 64  # at most; more days than these are counted in runs of equal length
LISTED = 32  # values with a bin of their own: every hour and every day of a month
REST = 8
GRID_BINS = 64
FINEST = -40  # step; float64 tells no finer bins apart everywhere
# Irrational, so that values people write (0, 1, 100) do not lie on an edge, where rounding would decide their bin.
ORIGIN = 1 / math.pi
SKIPPED = -1


class Values(Settings):
    """Bins of named values, then `rest` bins for the others."""

    kind: Literal["values"] = "values"
    names: tuple[str, ...]
    rest: int = 0

    @property
    def size(self) -> int:
        """Bins, with the one of missing values."""
        return len(self.names) + self.rest + 1


class Grid(Settings):
    """`inner` bins of width `2**step` in asinh(value), from place `first` on; a bin below and one above are open."""

    kind: Literal["grid"] = "grid"
    step: int
    first: int
    inner: int

    @property
    def size(self) -> int:
        """Bins, with the one of missing values."""
        return self.inner + 3


class Edges(Settings):
    """Buckets between ascending edges, the outer ones open."""

    kind: Literal["edges"] = "edges"
    edges: tuple[float, ...]

    @property
    def size(self) -> int:
        """Bins, with the one of missing values."""
        return len(self.edges) + 2


Bins = Annotated[Values | Grid | Edges, Field(discriminator="kind")]


class Tally(Settings):
    """Counts of one column in one split, [P][K] and [G][K]; a period or group without any is an empty list."""

    periods: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


def tally(bin_R: np.ndarray, period_R: np.ndarray, user_R: np.ndarray, periods: int, size: int) -> Tally:
    """Count bins by period and by group of users.

    Args:
        bin_R: int [R] or [R, L]; `SKIPPED` counts nowhere.
        period_R: int [R], below `periods`.
        user_R: row of the user table, int [R].
        periods: P.
        size: K.
    """
    cell_R = period_R.astype(np.int64) * GROUPS + user_R % GROUPS
    place = cell_R.reshape(-1, *[1] * (bin_R.ndim - 1)) * size + bin_R
    counts_PGK = np.bincount(place[bin_R != SKIPPED], minlength=periods * GROUPS * size).reshape(periods, GROUPS, size)
    return Tally(periods=_tuples(counts_PGK.sum(axis=1)), groups=_tuples(counts_PGK.sum(axis=0)))


def value_bins(names: Names, index_D: np.ndarray, counts_D: np.ndarray) -> tuple[Values, np.ndarray]:
    """Bins for a column of indices.

    Args:
        names: text of the values with index 2, 3, …
        index_D: the distinct indices that occur, ascending.
        counts_D: how often each does.

    Returns:
        The bins, and the bin of each of these indices, int16 [D]: padding is skipped, 1 is missing.
    """
    is_value = index_D >= FIRST_VALUE
    place_N = index_D[is_value] - FIRST_VALUE
    listed = most_frequent(names, place_N, counts_D[is_value], LISTED)
    is_listed = np.zeros(len(place_N), bool)
    is_listed[listed] = True
    bins = Values(names=tuple(names[int(place_N[n])] for n in listed), rest=0 if is_listed.all() else REST)
    bin_N = np.empty(len(place_N), np.int16)
    bin_N[listed] = np.arange(len(listed))
    for n in np.flatnonzero(~is_listed).tolist():
        bin_N[n] = len(listed) + rest_bin(names[int(place_N[n])])
    bin_D = np.where(index_D == UNKNOWN, bins.size - 1, SKIPPED).astype(np.int16)
    bin_D[is_value] = bin_N
    return bins, bin_D


def most_frequent(names: Names, place_N: np.ndarray, counts_N: np.ndarray, most: int) -> list[int]:
    """Which of these values (N distinct places in `names`) occur most: the largest count first, ties by name."""
    chosen = np.arange(len(counts_N))
    if len(chosen) > most:
        chosen = chosen[counts_N >= np.partition(counts_N, -most)[-most]]
    return heapq.nsmallest(most, chosen.tolist(), key=lambda n: (-counts_N[n], names[int(place_N[n])]))


def rest_bin(name: str) -> int:
    """Which of the `REST` bins counts a value that is not listed: CRC-32 of its UTF-8 text."""
    return zlib.crc32(name.encode()) % REST


def edge_bins(edges: Sequence[float]) -> tuple[Edges, np.ndarray]:
    """Bins for a column of bucket indices, and the bin of each index, int16 [2 + buckets]."""
    bins = Edges(edges=tuple(map(float, edges)))
    return bins, np.concatenate([[SKIPPED, bins.size - 1], np.arange(len(bins.edges) + 1)]).astype(np.int16)


def grid_of(values_R: np.ndarray) -> Grid:
    """The grid that puts the middle 99 % of these raw numbers into 32 to 64 bins; NaN does not count."""
    scaled = np.arcsinh(values_R[np.isfinite(values_R)])
    if not len(scaled):
        return Grid(step=0, first=0, inner=1)
    low, high = np.quantile(scaled, [0.005, 0.995])
    # A constant gets bins wide enough that float32 noise stays inside one.
    span = max(high - low, 2.0**-16 * max(abs(low), abs(high))) or 1.0
    step = math.ceil(math.log2(max(span / (GRID_BINS - 1), 2.0**FINEST)))
    first, last = grid_place(np.array([low, high]), step).astype(int).tolist()
    return Grid(step=step, first=first, inner=last - first + 1)


def grid_place(scaled_R: np.ndarray, step: int) -> np.ndarray:
    """Whole number of bins of width `2**step` between the origin and each asinh(value), float64."""
    return np.floor((scaled_R - ORIGIN) / 2.0**step)


def grid_bin(grid: Grid, values_R: np.ndarray) -> np.ndarray:
    """Bin of each raw number, int16 of the same shape; NaN is missing."""
    missing = np.isnan(values_R)
    place = grid_place(np.arcsinh(np.where(missing, 0.0, values_R)), grid.step) - grid.first
    bin_R = np.clip(place, -1, grid.inner).astype(np.int16) + 1
    bin_R[missing] = grid.size - 1
    return bin_R


def _tuples(counts: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) if any(row) else () for row in counts.tolist())
