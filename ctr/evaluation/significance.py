"""Which of several rankers is better: each was trained with several seeds, and all score the same rows.

A mean AUC varies with the users and with the randomness of training. The first variance is that over resamples of
users, the second that over seeds:

    variance = Var_b(mean_s AUC_sb) + s² / S,    s² = Σ_s (AUC_s - mean)² / (S - 1)

Resampling the S seeds would give only (S - 1) / S of the second term: half of it for two seeds. The interval is
Student's, with Welch and Satterthwaite's degrees of freedom of the two terms (U - 1 and S - 1), because a variance
from few seeds is uncertain. With one seed the interval covers the users alone.

The mean AUC of lists (the candidates of a request) has the same two variances.

Shapes: N rows, G lists that have both classes, S seeds, B resamples, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

from ctr.evaluation.bootstrap import LEVEL, Interval, UserDraws
from ctr.evaluation.metrics import RankedRows, group_aucs
from ctr.evaluation.ranking_metrics import judged_lists
from features.errors import DataError


class Difference(NamedTuple):
    """The difference of two mean AUCs.

    Args:
        value, low, high: the difference and its 95 % interval, of this comparison alone.
        p: two-sided p-value of no difference, of this comparison alone; see `holm`.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SeededAuc:
    """Mean AUC over seeds, of all rows or of lists, and in each resample of users.

    Args:
        by_seed: AUC of each seed without resampling, float64 [S].
        drawn: mean AUC over seeds in each resample, float64 [B]; resample b has the same users for all rankers.
        users: number of users, U.
    """

    by_seed: np.ndarray
    drawn: np.ndarray
    users: int

    def interval(self) -> Interval:
        """Mean AUC and its 95 % interval over users and, from two seeds on, over trainings; within 0 and 1."""
        value = float(self.by_seed.mean())
        error, degrees = _error([(_variance(self.drawn), self.users - 1), self._of_seeds()])
        reach = float(student.ppf(1 - LEVEL / 2, degrees)) * error
        return Interval(value, max(value - reach, 0.0), min(value + reach, 1.0))

    def minus(self, other: SeededAuc) -> Difference:
        """This mean AUC minus another, paired by users: users that are hard for both rankers cancel.

        The same trainings differ by nothing, for certain.
        """
        if other is self:
            return Difference(0.0, 0.0, 0.0, 1.0)
        value = float(self.by_seed.mean() - other.by_seed.mean())
        of_users = (_variance(self.drawn - other.drawn), self.users - 1)
        error, degrees = _error([of_users, self._of_seeds(), other._of_seeds()])
        reach = float(student.ppf(1 - LEVEL / 2, degrees)) * error
        p = 2 * float(student.sf(abs(value) / error, degrees)) if error > 0 else float(value == 0)
        return Difference(value, value - reach, value + reach, p)

    def _of_seeds(self) -> tuple[float, int]:
        """Variance of the mean over trainings, and its degrees of freedom."""
        seeds = len(self.by_seed)
        return (_variance(self.by_seed) / seeds, seeds - 1) if seeds > 1 else (0.0, 1)


def seeded_aucs(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> dict[str, SeededAuc]:
    """Bootstrap several rankers on the same resamples of users, each drawn with all of their rows.

    Args:
        labels: 0 or 1, [N].
        scores: by ranker, [S, N], any numbers that rank; S is 1 for a ranker without randomness.
        weights: row weights, [N]; none means ones.
        clusters: user of each row, [N].
        seed: of the bootstrap.

    Raises:
        DataError: a ranker has another number of rows, all labels are the same, or all rows are of one user.
    """
    labels = np.asarray(labels, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    counted = labels[weights > 0]
    if not len(counted) or counted.min() == counted.max():
        raise DataError(
            f"AUC needs both classes, but {int(counted.sum())} of {len(counted)} rows with a weight are positive. "
            "Enlarge the split."
        )
    for name, scores_SN in scores.items():
        if scores_SN.ndim != 2 or scores_SN.shape[1] != len(labels):
            raise DataError(f"scores of {name}: shape {scores_SN.shape}, but there are {len(labels)} labels.")
    users = UserDraws(clusters)
    if users.count < 2:
        raise DataError(
            f"all {len(labels)} rows are of one user: an interval needs two users or more. Enlarge the split."
        )
    ranked = {name: [RankedRows(labels, one) for one in scores_SN] for name, scores_SN in scores.items()}
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for times_N in users.by_row(seed):
        weighed_N = times_N * weights
        for name, seeds in ranked.items():
            drawn[name].append(float(np.mean([one.auc(weighed_N) for one in seeds])))
    return {
        name: SeededAuc(np.array([one.auc(weights) for one in seeds]), np.array(drawn[name]), users.count)
        for name, seeds in ranked.items()
    }


def seeded_list_aucs(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    lists: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> dict[str, SeededAuc]:
    """Bootstrap the mean AUC within lists of several rankers on the same resamples of users; as `ranking_metrics`.

    A user is drawn with all lists that begin with a row of theirs. A list of one class is left out, and a user without
    another one.

    Args:
        labels: 0 or 1, [N].
        scores: by ranker, [S, N].
        lists: that each row belongs to, [N].
        weights: row weights, [N]; none means ones. The weight of a list is the mean weight of its rows.
        clusters: user of each row, [N].
        seed: of the bootstrap.

    Returns:
        By ranker; empty where no list has both classes and a weight, or all of those are of one user.
    """
    labels = np.asarray(labels, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    first_G, weight_G = judged_lists(labels, lists, weights)
    if not weight_G.sum() > 0:
        return {}
    users = UserDraws(np.asarray(clusters)[first_G])
    if users.count < 2:
        return {}
    times_BU = np.stack(list(users.by_user(seed)))
    found = {}
    for name, scores_SN in scores.items():
        auc_SG = np.stack([group_aucs(labels, one, lists)[0] for one in scores_SN])
        weighed_B, weight_B = (
            times_BU @ users.sums(values_G) for values_G in (auc_SG.mean(axis=0) * weight_G, weight_G)
        )
        drawn_B = weighed_B / np.where(weight_B > 0, weight_B, np.nan)
        found[name] = SeededAuc(np.average(auc_SG, axis=1, weights=weight_G), drawn_B, users.count)
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for the number of comparisons: the chance of any false difference stays below the level.

    The k-th smallest of m p-values is multiplied by (m - k + 1); it is at least the one before it, and at most 1 (Holm
    1979). The comparisons may depend on each other.

    Args:
        p_values: of each comparison of one table, by name.

    Returns:
        The adjusted p-values by name, in the order given.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def resolved(differences: Sequence[Interval]) -> list[bool]:
    """Which differences of one table are significant at 5 % after Holm's correction.

    Args:
        differences: each with its 95 % interval, whose width is 3.92 standard errors.

    Returns:
        One value for each difference, in order.
    """
    p_values = {}
    for place, (value, low, high) in enumerate(differences):
        error = (high - low) / (2 * float(normal.ppf(1 - LEVEL / 2)))
        p_values[str(place)] = 2 * float(normal.sf(abs(value) / error)) if error > 0 else float(value == 0)
    return [p < LEVEL for p in holm(p_values).values()]


def _error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of estimated variances, each with its degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, 1.0
    return total**0.5, total**2 / sum(variance**2 / degrees for variance, degrees in parts)


def _variance(values: np.ndarray) -> float:
    """Sample variance without NaN: a resample of one class has no AUC."""
    return float(np.nanvar(values, ddof=1))
