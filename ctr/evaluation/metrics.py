"""What a score is worth: ranking, likelihood and calibration metrics, with bootstrap intervals over users.

Everywhere labels are 0 or 1, one score a row, and a row of weight 2 counts as the row twice.

Shapes: N rows, G groups, T distinct scores, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ctr.evaluation.resampling import Clusters
from features.errors import DataError, NumericalError

RESAMPLES = 300
BINS = 20
# Twenty bins of few rows are as far from their rates as chance makes them: on 200 calibrated rows ECE is near 0.1.
FEWEST_ROWS_OF_ECE = 1000
# Probabilities are read as at least this far from 0 and 1: the float32 resolution next to 1.
PROBABILITY_MARGIN = 1e-7


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap percentile interval."""

    value: float
    low: float
    high: float


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
    labels, scores, weights = _checked(labels, scores, weights)
    _require_both_classes(labels, weights)
    return RankedRows(labels, scores).auc(weights)


def gauc_by_samples(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Mean AUC of the groups (users or requests), weighted by their rows, as FuxiCTR defines GAUC.

    Groups with one class have no AUC and are left out; NaN where no group has both.
    """
    auc_G, mass_G, _ = group_aucs(labels, scores, groups, weights)
    return _mean(auc_G, mass_G)


def gauc_by_positives(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Mean AUC of the groups, weighted by their positive rows, as RecBole defines GAUC."""
    auc_G, _, positives_G = group_aucs(labels, scores, groups, weights)
    return _mean(auc_G, positives_G)


def gauc_unweighted(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Plain mean AUC of the groups, as TorchEasyRec defines GAUC; row weights count within a group alone."""
    auc_G, _, _ = group_aucs(labels, scores, groups, weights)
    return _mean(auc_G, np.ones_like(auc_G))


def group_aucs(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC, weight and weight of the positives of every group with both classes, float64 [G] each.

    Groups come in order of appearance. Without row weights the weight of a group is its number of rows.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not finite.
    """
    labels, scores, weights = _checked(labels, scores, weights)
    _require_length("groups", groups, labels)
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
    of_groups_before_G = np.cumsum(negative_G) - negative_G
    below_T = np.cumsum(negative_T) - negative_T / 2 - of_groups_before_G[group_T]
    wins_G = np.add.reduceat(positive_T * below_T, starts_G)
    appearance_G = np.argsort(first_G)
    found = appearance_G[(positive_G[appearance_G] > 0) & (negative_G[appearance_G] > 0)]
    return wins_G[found] / (positive_G * negative_G)[found], (positive_G + negative_G)[found], positive_G[found]


def log_loss(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean negative log likelihood in nats, probabilities kept `PROBABILITY_MARGIN` away from 0 and 1.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
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
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
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
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
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


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """AUC with its 95 % percentile bootstrap interval: how much other users of the kind would have changed it.

    Sorted once; each resample is O(N) on drawn row counts.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        weights: row weights, [N]; none means ones.
        clusters: user of each row, [N]; users are drawn with all of their rows. One value a row draws rows.
        resamples: how many.
        seed: of the draws.

    Raises:
        DataError: as `auc`.
    """
    labels, scores, weights = _checked(labels, scores, weights)
    _require_length("clusters", clusters, labels)
    _require_both_classes(labels, weights)
    ranked = RankedRows(labels, scores)
    drawn = [ranked.auc(times_N * weights) for times_N in Clusters(clusters).by_row(resamples, seed)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(ranked.auc(weights), float(low), float(high))


def paired_difference(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """AUC of a minus AUC of b with its 95 % interval, both scored on the same resamples of users.

    Two rankers err on the same rows, so this is far narrower than the difference of two intervals. An interval that
    excludes 0 is a difference that these users can resolve. Arguments and errors as `auc_interval`.
    """
    labels, scores_a, weights = _checked(labels, scores_a, weights)
    labels, scores_b, _ = _checked(labels, scores_b, weights)
    _require_length("clusters", clusters, labels)
    _require_both_classes(labels, weights)
    a, b = RankedRows(labels, scores_a), RankedRows(labels, scores_b)
    weighed = (times_N * weights for times_N in Clusters(clusters).by_row(resamples, seed))
    drawn = [a.auc(weights_N) - b.auc(weights_N) for weights_N in weighed]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(a.auc(weights) - b.auc(weights), float(low), float(high))


def evaluate(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    base_rate: float,
    weights: np.ndarray | None = None,
    intervals: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Every metric of one set of scored rows.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
        groups: user of each row, [N]: for GAUC, and drawn whole by the bootstrap.
        base_rate: training positive rate, for the normalized entropy.
        weights: row weights, [N].
        intervals: also bootstrap `auc_low` and `auc_high` over users (1 s a 100,000 rows).
        seed: of the bootstrap.

    Returns:
        `auc`, `auc_low`, `auc_high`, `gauc_by_samples`, `gauc_by_positives`, `gauc_unweighted`, `log_loss`,
        `normalized_entropy`, `calibration_ratio`, `ece`. What does not exist is left out: the GAUCs where no group has
        both classes, the interval of a single user, the ECE of fewer than 1,000 rows.

    Raises:
        DataError: lengths differ, a label is not 0 or 1, or all labels are the same.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
    _require_length("groups", groups, labels)
    result = {"auc": auc(labels, scores, weights)}
    if intervals and len(np.unique(groups)) > 1:
        found = auc_interval(labels, scores, weights, clusters=groups, seed=seed)
        result |= {"auc_low": found.low, "auc_high": found.high}
    auc_G, mass_G, positives_G = group_aucs(labels, scores, groups, weights)
    if len(auc_G):
        result["gauc_by_samples"] = _mean(auc_G, mass_G)
        result["gauc_by_positives"] = _mean(auc_G, positives_G)
        result["gauc_unweighted"] = _mean(auc_G, np.ones_like(auc_G))
    likely = likelihoods(labels, scores, weights)
    result["log_loss"] = likely.pop("log_loss")
    result["normalized_entropy"] = normalized_entropy(labels, scores, base_rate, weights)
    result["calibration_ratio"] = calibration_ratio(labels, scores, weights)
    return result | likely


def _starts(*sorted_columns: np.ndarray) -> np.ndarray:
    """Where a new value begins in any of some columns that are sorted together, int64 [T]."""
    changes = [column[1:] != column[:-1] for column in sorted_columns]
    return np.flatnonzero(np.concatenate([[True], np.logical_or.reduce(changes)]))


def _mean(values_G: np.ndarray, weights_G: np.ndarray) -> float:
    return float(values_G @ weights_G / weights_G.sum()) if len(values_G) else float("nan")


def _checked(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as float64 [N], after the checks that every metric needs."""
    labels = np.asarray(labels, np.float64)
    scores = np.asarray(scores, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    if not len(labels):
        raise DataError("no rows to evaluate: the split is empty. Enlarge its share under `split`.")
    _require_length("scores", scores, labels)
    _require_length("weights", weights, labels)
    wrong = ~((labels == 0) | (labels == 1))
    if wrong.any():
        raise DataError(f"labels: {int(wrong.sum())} of {len(labels)} are not 0 or 1, e.g. {labels[wrong][0]}.")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise DataError(f"weights: must be finite, 0 or more and not all 0; smallest {weights.min()}.")
    lost = ~np.isfinite(scores)
    if lost.any():
        raise NumericalError(
            f"scores: {int(lost.sum())} of {len(scores)} are not finite, the first in row "
            f"{int(lost.argmax())}. Lower `train.learning_rate`, or look at that row's columns and vectors."
        )
    return labels, scores, weights


def _checked_probabilities(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, weights = _checked(labels, scores, weights)
    if scores.min() < 0 or scores.max() > 1:
        raise NumericalError(
            f"scores: expected probabilities, got values from {scores.min():.4g} to {scores.max():.4g}. "
            "Apply the sigmoid to logits first."
        )
    return labels, scores, weights


def _require_length(name: str, values: np.ndarray, labels: np.ndarray) -> None:
    if np.shape(values) != labels.shape:
        raise DataError(f"{name}: shape {np.shape(values)}, but there are {len(labels)} labels.")


def _require_both_classes(labels: np.ndarray, weights: np.ndarray) -> None:
    positives = int(labels[weights > 0].sum())
    if positives in (0, int((weights > 0).sum())):
        raise DataError(
            f"AUC needs both classes, but {positives} of {len(labels)} rows are positive. Enlarge the "
            "split, or check `interactions.label` of the data contract."
        )
