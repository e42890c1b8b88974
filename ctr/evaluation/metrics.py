"""Point metrics of scored rows: ranking, likelihood and calibration.

Labels are 0 or 1, each row has one score, and a row of weight 2 counts as two rows of weight 1.

Shapes: N rows, G groups, T distinct scores, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctr.evaluation.checks import checked, checked_probabilities, require_both_classes, require_length
from features.errors import DataError

BINS = 20
# With fewer rows ECE measures chance: 200 rows of a perfectly calibrated model have an ECE near 0.1.
FEWEST_ROWS_OF_ECE = 1000
# Logarithms clip probabilities to at least this distance from 0 and 1: the float32 resolution next to 1.
PROBABILITY_MARGIN = 1e-7


@dataclass(frozen=True)
class Reliability:
    """Mean score against mean label by bin, empty bins left out; every array is [K].

    Args:
        score: weighted mean score.
        label: weighted mean label, the observed rate.
        count: int64, rows.
        share: share of the total weight; sums to 1.
    """

    score: np.ndarray
    label: np.ndarray
    count: np.ndarray
    share: np.ndarray


class RankedRows:
    """Rows sorted by score once, so that AUC under any row weights costs O(N) afterwards.

    The weight of the negatives below a positive, ties counted half, is the mean of two running sums over sorted
    negatives: up to those of less than its score, and up to those of its score. Not for several threads at once, as
    the sums are written into one buffer.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        order_N = np.argsort(scores, kind="stable")
        positive_N = labels[order_N] > 0
        self._positives, self._negatives = order_N[positive_N], order_N[~positive_N]
        of_negatives, of_positives = scores[self._negatives], scores[self._positives]
        self._below = np.searchsorted(of_negatives, of_positives, side="left")
        self._up_to = np.searchsorted(of_negatives, of_positives, side="right")
        self._sums = np.zeros(len(self._negatives) + 1)

    def auc(self, weights: np.ndarray) -> float:
        """Weighted share of (positive, negative) pairs in the right order, ties counted half.

        NaN where the weights leave only one class.
        """
        of_positives = weights.take(self._positives)
        np.cumsum(weights.take(self._negatives), out=self._sums[1:])
        pairs = of_positives.sum() * self._sums[-1]
        wins = of_positives @ self._sums.take(self._below) + of_positives @ self._sums.take(self._up_to)
        return float(wins / (2 * pairs)) if pairs > 0 else float("nan")


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counted half.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        weights: row weights, [N]; none means ones.

    Raises:
        DataError: lengths differ, a label is not 0 or 1, or all labels are the same.
        NumericalError: a score is not finite.
    """
    labels, scores, weights = checked(labels, scores, weights)
    require_both_classes(labels, weights)
    return RankedRows(labels, scores).auc(weights)


def gauc_by_samples(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """GAUC: mean AUC of the groups (users or requests), weighted by their rows, as FuxiCTR defines it.

    Groups of one class have no AUC and are left out; NaN if no group has both classes.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        groups: user or request of each row, [N].
        weights: row weights, [N]; none means ones.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not finite.
    """
    auc_G, weight_G = group_aucs(labels, scores, groups, weights)
    return float(auc_G @ weight_G / weight_G.sum()) if len(auc_G) else float("nan")


def group_aucs(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and total row weight of every group with both classes, float64 [G] each.

    Groups come in order of appearance. Arguments as `gauc_by_samples`.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not finite.
    """
    labels, scores, weights = checked(labels, scores, weights)
    require_length("groups", groups, labels)
    _, first_G, group_N = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    order_N = np.lexsort((scores, group_N))
    sorted_N, group_N = scores[order_N], group_N[order_N]
    starts_T = _starts(group_N, sorted_N)
    positive_N = (labels * weights)[order_N]
    positive_T = np.add.reduceat(positive_N, starts_T)
    negative_T = np.add.reduceat(weights[order_N] - positive_N, starts_T)
    group_T = group_N[starts_T]
    starts_G = _starts(group_T)
    positive_G, negative_G = np.add.reduceat(positive_T, starts_G), np.add.reduceat(negative_T, starts_G)
    # One running sum over all groups: each group's negatives are brought to a sum from a half to one by a power of two,
    # which rounds nothing, so that no heavy group swallows the weights of those after it.
    scaled_G, power_G = np.frexp(negative_G)
    scaled_T = np.ldexp(negative_T, -power_G[group_T])
    sum_T = np.cumsum(scaled_T)
    of_groups_before_G = (sum_T - scaled_T)[starts_G]
    below_T = sum_T - scaled_T / 2 - of_groups_before_G[group_T]
    wins_G = np.add.reduceat(positive_T * below_T, starts_G)
    appearance_G = np.argsort(first_G)
    found = appearance_G[(positive_G[appearance_G] > 0) & (negative_G[appearance_G] > 0)]
    # Of rounding alone, a list in the best order may be a little above 1.
    auc_G = np.clip(wins_G[found] / (positive_G * scaled_G)[found], 0, 1)
    return auc_G, (positive_G + negative_G)[found]


def log_loss(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats, probabilities kept `PROBABILITY_MARGIN` away from 0 and 1.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = checked_probabilities(labels, scores, weights)
    inside_N = np.clip(scores, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return float(np.average(-np.log(np.where(labels > 0, inside_N, 1 - inside_N)), weights=weights))


def normalized_entropy(
    labels: np.ndarray, scores: np.ndarray, base_rate: float, weights: np.ndarray | None = None
) -> float:
    """Log loss over the entropy of the training positive rate; below 1 beats always saying that rate.

    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (2014), equation 1.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
        base_rate: share of positives in *training*, so that a shift of the rate is not forgiven.
        weights: row weights, [N].

    Raises:
        DataError: as `log_loss`, or a base rate that is not strictly between 0 and 1.
    """
    if not 0 < base_rate < 1:
        raise DataError(
            f"training positive rate {base_rate}: all training labels are the same, so there is nothing to "
            "learn. Check `interactions.label` of the data contract."
        )
    entropy = -base_rate * np.log(base_rate) - (1 - base_rate) * np.log(1 - base_rate)
    return float(log_loss(labels, scores, weights) / entropy)


def calibration_ratio(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Predicted over observed positives, sum p / sum y: 1 is calibrated, above 1 promises too many.

    Raises:
        DataError: no positive label.
    """
    labels, scores, weights = checked_probabilities(labels, scores, weights)
    observed = labels @ weights
    if observed == 0:
        raise DataError(f"calibration ratio: none of {len(labels)} labels is positive.")
    return float(scores @ weights / observed)


def equal_mass_bins(values: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each row, int64 [N] from 0: bins of equal weight in rising order of the values.

    A row with weight w and weight m of smaller values falls into bin floor(bins (m + w / 2) / total). Equal values
    count as one row of their weight together, hence share a bin, so that row order never matters.
    """
    order_N = np.argsort(values, kind="stable")
    starts_T = _starts(values[order_N])
    mass_T = np.add.reduceat(weights[order_N], starts_T)
    centre_T = np.cumsum(mass_T) - mass_T / 2
    bin_T = np.minimum(np.floor(bins * centre_T / mass_T.sum()).astype(np.int64), bins - 1)
    bin_N = np.empty(len(values), np.int64)
    bin_N[order_N] = np.repeat(bin_T, np.diff(starts_T, append=len(values)))
    return bin_N


def reliability(
    labels: np.ndarray, scores: np.ndarray, bins: int = BINS, weights: np.ndarray | None = None
) -> Reliability:
    """Mean score and mean label in `equal_mass_bins`, lowest scores first.

    Without weights and ties the bins differ by at most one row.

    Raises:
        DataError: lengths differ, a label is not 0 or 1.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = checked_probabilities(labels, scores, weights)
    bin_N = equal_mass_bins(scores, weights, bins)
    mass_K = np.bincount(bin_N, weights, bins)
    filled = mass_K > 0
    total_K = mass_K[filled]
    return Reliability(
        score=np.bincount(bin_N, weights * scores, bins)[filled] / total_K,
        label=np.bincount(bin_N, weights * labels, bins)[filled] / total_K,
        count=np.bincount(bin_N, minlength=bins)[filled],
        share=total_K / total_K.sum(),
    )


def ece(labels: np.ndarray, scores: np.ndarray, bins: int = BINS, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: mean |mean score - mean label| over `reliability`'s bins, by their mass.

    Chance alone makes it positive, by about 0.4 / sqrt(rows of a bin) at a rate of one half: see `likelihoods`.
    """
    table = reliability(labels, scores, bins, weights)
    return float(table.share @ np.abs(table.score - table.label))


def likelihoods(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """`log_loss`, and `ece` where there are at least 1,000 rows: that of fewer is chance for the most part."""
    found = {"log_loss": log_loss(labels, scores, weights)}
    if len(labels) >= FEWEST_ROWS_OF_ECE:
        found["ece"] = ece(labels, scores, weights=weights)
    return found


def _starts(*sorted_columns: np.ndarray) -> np.ndarray:
    """Where a new value begins in any of some columns that are sorted together, int64 [T]."""
    changes = [column[1:] != column[:-1] for column in sorted_columns]
    return np.flatnonzero(np.concatenate([[True], np.logical_or.reduce(changes)]))
