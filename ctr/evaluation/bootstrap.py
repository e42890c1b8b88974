"""Bootstrap over users: how much a metric would change with other users of the same kind.

The rows of one user are alike, so users are drawn with all of their rows. A bootstrap that draws rows as if they were
independent gives intervals that are too narrow where users have many rows.

Shapes: N rows, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ctr.evaluation.checks import checked, require_both_classes, require_length
from ctr.evaluation.metrics import RankedRows
from features.errors import DataError

# Resamples of every bootstrap. The end of a 95 % interval then has a standard error of 4 % of the interval's width.
RESAMPLES = 300
LEVEL = 0.05  # an interval leaves out this share of the resamples, half of it at each end


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval, in the unit of the estimate."""

    value: float
    low: float
    high: float


class UserDraws:
    """Draws the users of some rows with replacement, `RESAMPLES` times.

    Args:
        users: user of each row, [N]; rows of equal value are drawn together. Distinct values draw single rows.

    Raises:
        DataError: there are no rows, or `users` is not one value a row.
    """

    def __init__(self, users: np.ndarray) -> None:
        users = np.asarray(users)
        if users.ndim != 1 or not len(users):
            raise DataError(f"clusters: expected one user a row, got shape {users.shape}.")
        distinct, self._user_of_row_N = np.unique(users, return_inverse=True)
        self.count = len(distinct)

    def by_user(self, seed: int) -> Iterator[np.ndarray]:
        """How often each user is drawn, float64 [U], once a resample; as many draws as there are users."""
        generator = np.random.default_rng(seed)
        for _ in range(RESAMPLES):
            drawn = generator.integers(0, self.count, self.count)
            yield np.bincount(drawn, minlength=self.count).astype(np.float64)

    def by_row(self, seed: int) -> Iterator[np.ndarray]:
        """How often each row is drawn, float64 [N], once a resample."""
        for times_U in self.by_user(seed):
            yield times_U[self._user_of_row_N]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the rows of each user, float64 [U, ...] of [N, ...]."""
        total = np.zeros((self.count, *values.shape[1:]))
        np.add.at(total, self._user_of_row_N, values)
        return total


def percentile_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95 % interval of what resamples gave, over the first axis.

    Args:
        values: a number for each resample, or an array; NaN where it does not exist in a resample.
    """
    low, high = np.nanpercentile(values, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)], axis=0)
    return low, high


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> Interval:
    """AUC with the 95 % percentile interval that other users would have given.

    Rows are sorted once; each resample then takes O(N).

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        weights: row weights, [N]; none means ones.
        clusters: user of each row, [N].
        seed: of the draws.

    Raises:
        DataError: as `metrics.auc`.
        NumericalError: a score is not finite.
    """
    labels, scores, weights = checked(labels, scores, weights)
    require_length("clusters", clusters, labels)
    require_both_classes(labels, weights)
    ranked = RankedRows(labels, scores)
    drawn = [ranked.auc(times_N * weights) for times_N in UserDraws(clusters).by_row(seed)]
    low, high = percentile_interval(np.array(drawn))
    return Interval(ranked.auc(weights), float(low), float(high))


def paired_difference(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> Interval:
    """AUC of a minus AUC of b with its 95 % interval, both computed on the same resamples of users.

    Two rankers tend to fail on the same rows, so this interval is far narrower than the difference of two intervals.
    If it excludes 0, these users are enough to tell which ranker is better. Arguments and errors as `auc_interval`.
    """
    labels, scores_a, weights = checked(labels, scores_a, weights)
    labels, scores_b, _ = checked(labels, scores_b, weights)
    require_length("clusters", clusters, labels)
    require_both_classes(labels, weights)
    a, b = RankedRows(labels, scores_a), RankedRows(labels, scores_b)
    weighed = (times_N * weights for times_N in UserDraws(clusters).by_row(seed))
    drawn = [a.auc(weights_N) - b.auc(weights_N) for weights_N in weighed]
    low, high = percentile_interval(np.array(drawn))
    return Interval(a.auc(weights) - b.auc(weights), float(low), float(high))
