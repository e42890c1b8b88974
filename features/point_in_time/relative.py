"""Request-relative columns: what a number of a candidate is among those of its request, in a log and in a ranker.

They compare numbers as their encoders keep them, in float32: what is equal to a model is equal here, offline and
online. A missing number takes no part and stays missing.

Shapes: R rows of any number of requests, K of them with a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.contract.relative import RelativeColumn
from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder

# A mean of so many steps of float32 around 0 is 0 where shares are computed: a scaled 0 does not come back exactly.
STEPS_OF_ZERO = 1000


def relative_values(
    columns: Sequence[RelativeColumn],
    readers: Mapping[str, NumericEncoder],
    encoded: Mapping[str, np.ndarray],
    request_R: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each column before it is scaled, float64 [R] by name; NaN is missing.

    - `rank`: the share of the other candidates whose number is below, those of the same number counted half; 0.5 alone.
    - `difference`: the number less the mean of the request's, on the scale that its encoder gives it.
    - `share`: the number, unscaled, of the sum of the request's; missing where that is 0.
    - `count`: the number of candidates, those without a number included.

    Args:
        columns: to compute.
        readers: encoders of the numbers that are compared, by name.
        encoded: the numbers, float32 [R] by name.
        request_R: number of each row's request, integers of any size and in any order.
    """
    sizes, request_R = _dense(request_R)
    sorted_numbers: dict[str, _Sorted] = {}
    found = {}
    for column in columns:
        if column.of is None:
            found[column.name] = sizes[request_R].astype(np.float64)
            continue
        if column.of not in sorted_numbers:
            sorted_numbers[column.of] = _Sorted.of(encoded[column.of], request_R)
        numbers = sorted_numbers[column.of]
        match column.kind:
            case "rank":
                values_K = numbers.rank()
            case "difference":
                values_K = numbers.difference()
            case _:
                values_K = numbers.share(readers[column.of])
        found[column.name] = np.full(len(request_R), np.nan)
        found[column.name][numbers.row_K] = values_K
    return found


def encoded_relative(
    encoder: Encoder, candidate: Mapping[str, np.ndarray], item_R: np.ndarray, request_R: np.ndarray
) -> dict[str, np.ndarray]:
    """The request-relative columns of candidates as a model sees them, float32 [R] by name.

    Args:
        encoder: whose columns they are.
        candidate: its counters of each candidate, encoded, float32 [R] by name.
        item_R: item rows.
        request_R: number of each candidate's request.
    """
    numbers = {**candidate, **{name: of_I[item_R] for name, of_I in encoder.item_numbers.items()}}
    readers = {**encoder.candidate, **{name: encoder.item[name] for name in encoder.item_numbers}}
    found = relative_values(encoder.contract.relative_columns, numeric(readers), numbers, request_R)
    return {name: encoder.relative[name].encode_many(values) for name, values in found.items()}


def numeric(columns: Mapping[str, object]) -> dict[str, NumericEncoder]:
    """The encoders of numbers among some."""
    return {name: one for name, one in columns.items() if isinstance(one, NumericEncoder)}


@dataclass(frozen=True)
class _Sorted:
    """The K known numbers by request and size.

    Args:
        row_K: where they stand among all rows.
        value_K: the numbers, float64.
        first_G, count_G: where the numbers of each request begin, and how many there are.
        group_K: which of these requests.
    """

    row_K: np.ndarray
    value_K: np.ndarray
    first_G: np.ndarray
    count_G: np.ndarray
    group_K: np.ndarray

    @classmethod
    def of(cls, value_R: np.ndarray, request_R: np.ndarray) -> _Sorted:
        """Sort the numbers that are no NaN."""
        known = np.flatnonzero(~np.isnan(value_R))
        row_K = known[np.lexsort((value_R[known], request_R[known]))]
        first_G, count_G = _runs(request_R[row_K])
        group_K = np.repeat(np.arange(len(first_G)), count_G)
        return cls(row_K, value_R[row_K].astype(np.float64), first_G, count_G, group_K)

    def rank(self) -> np.ndarray:
        """Share of the others below, float64 [K]."""
        differs = (self.group_K[1:] != self.group_K[:-1]) | (self.value_K[1:] != self.value_K[:-1])
        tie_K = np.cumsum(np.r_[0, differs])[: len(self.value_K)]
        first_T, equal_T = _runs(tie_K)
        below_T = first_T - self.first_G[self.group_K[first_T]]
        others_T = self.count_G[self.group_K[first_T]] - 1
        rank_T = np.where(others_T > 0, (below_T + (equal_T - 1) / 2) / np.maximum(others_T, 1), 0.5)
        return np.repeat(rank_T, equal_T)

    def difference(self) -> np.ndarray:
        """Number less the request's mean, float64 [K]; exactly 0 where all are equal."""
        # Sums of float32 in float64: the mean of equal numbers is that number, to the last bit.
        return self.value_K - (self._sums(self.value_K) / self.count_G)[self.group_K]

    def share(self, reader: NumericEncoder) -> np.ndarray:
        """Unscaled number of the request's sum, float64 [K]; NaN where the sum is 0."""
        raw_K = reader.raw_values(self.value_K)
        sum_G = self._sums(raw_K)
        is_zero_G = np.abs(sum_G / self.count_G) <= STEPS_OF_ZERO * step_at_zero(reader)
        return raw_K / np.where(is_zero_G, np.nan, sum_G)[self.group_K]

    def _sums(self, values_K: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values_K, self.first_G) if len(values_K) else np.empty(0)


def step_at_zero(reader: NumericEncoder) -> float:
    """How far apart two neighbours in float32 are once they are unscaled, where the number is 0."""
    (zero,) = reader.encode_many(np.zeros(1))
    low, high = reader.raw_values(np.array([zero, np.nextafter(zero, np.float32(np.inf))]))
    return float(high - low)


def _runs(values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal values begins, and how long it is."""
    first = np.flatnonzero(np.r_[len(values_K) > 0, values_K[1:] != values_K[:-1]])
    return first, np.diff(np.r_[first, len(values_K)])


def _dense(request_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each request has, and the requests numbered from 0."""
    _, number_R, sizes = np.unique(request_R, return_inverse=True, return_counts=True)
    return sizes, number_R
