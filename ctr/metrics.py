"""What a score is worth: ranking, likelihood and calibration metrics, with bootstrap intervals.

Shapes: N rows, G groups, T distinct scores, K bins. Everywhere labels are 0 or 1, one score a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from features.errors import DataError, NumericalError

RESAMPLES = 300
BINS = 20
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
    """Rows sorted by score once, so that AUC under any row weights costs O(N) afterwards."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order_N = np.argsort(scores, kind="stable")
        sorted_N = scores[self._order_N]
        self._positive_N = labels[self._order_N] > 0
        self._starts_T = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))

    def auc(self, weights: np.ndarray) -> float:
        """Weighted share of (positive, negative) pairs in the right order, ties counted half.

        NaN where the weights leave only one class.
        """
        weights_N = weights[self._order_N]
        positive_N = np.where(self._positive_N, weights_N, 0.0)
        positive_T = np.add.reduceat(positive_N, self._starts_T)
        negative_T = np.add.reduceat(weights_N - positive_N, self._starts_T)
        below_T = np.cumsum(negative_T) - negative_T / 2
        pairs = positive_T.sum() * negative_T.sum()
        return float(positive_T @ below_T / pairs) if pairs > 0 else float("nan")


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


def gauc_by_samples(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Mean AUC of the groups (users or requests), weighted by their rows, as FuxiCTR defines GAUC.

    Groups with one class have no AUC and are left out; NaN where no group has both.
    """
    auc_G, rows_G, _ = group_aucs(labels, scores, groups)
    return _mean(auc_G, rows_G)


def gauc_by_positives(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Mean AUC of the groups, weighted by their positive rows, as RecBole defines GAUC."""
    auc_G, _, positives_G = group_aucs(labels, scores, groups)
    return _mean(auc_G, positives_G)


def gauc_unweighted(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Plain mean AUC of the groups, as TorchEasyRec defines GAUC."""
    auc_G, _, _ = group_aucs(labels, scores, groups)
    return _mean(auc_G, np.ones_like(auc_G))


def group_aucs(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC, rows and positive rows of every group with both classes; float64 [G] each, in order of appearance.

    By the rank-sum identity AUC = (R - P(P + 1)/2) / (P (N - P)), R the positives' sum of average ranks.

    Raises:
        DataError: lengths differ, or a label is not 0 or 1.
        NumericalError: a score is not finite.
    """
    labels, scores, _ = _checked(labels, scores, None)
    _require_length("groups", groups, labels)
    positives, rows = pl.col("label").sum(), pl.len().cast(pl.Float64)
    rank_sum = (pl.col("score").rank("average") * pl.col("label")).sum()
    table = (
        pl.DataFrame({"group": np.asarray(groups), "label": labels, "score": scores})
        .group_by("group", maintain_order=True)
        .agg(rows=rows, positives=positives, rank_sum=rank_sum)
        .filter((pl.col("positives") > 0) & (pl.col("positives") < pl.col("rows")))
    )
    rows_G, positives_G, rank_sum_G = (table[name].to_numpy() for name in ("rows", "positives", "rank_sum"))
    wins_G = rank_sum_G - positives_G * (positives_G + 1) / 2
    return wins_G / (positives_G * (rows_G - positives_G)), rows_G, positives_G


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


def reliability(
    labels: np.ndarray, scores: np.ndarray, bins: int = BINS, weights: np.ndarray | None = None
) -> Reliability:
    """Mean score and mean label in bins of equal mass, lowest scores first.

    A row of average rank r (1 to N) falls into bin floor(bins (r - 1/2) / N). Without ties the bins differ
    by at most one row; equal scores share a rank, hence a bin, so that row order never matters.

    Raises:
        DataError: lengths differ, a label is not 0 or 1.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
    rank_N = pl.Series(scores).rank("average").to_numpy()
    bin_N = np.floor(bins * (rank_N - 0.5) / len(scores)).astype(np.int64)
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
    """Expected calibration error: mean |mean score - mean label| over `reliability`'s bins, by their mass."""
    table = reliability(labels, scores, bins, weights)
    return float(table.share @ np.abs(table.score - table.label))


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """AUC with its 95 % percentile bootstrap interval.

    Rows are drawn with replacement: how much another test window of the same users would differ. Pass
    `clusters` (say, users) to draw whole clusters instead: how much other users would differ, which is
    wider where a user has many rows. Sorted once; each resample is O(N) on drawn row counts.

    Raises:
        DataError: as `auc`.
    """
    labels, scores, weights = _checked(labels, scores, weights)
    _require_both_classes(labels, weights)
    ranked = RankedRows(labels, scores)
    drawn = [ranked.auc(counts_N * weights) for counts_N in _row_counts(len(labels), clusters, resamples, seed)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(ranked.auc(weights), float(low), float(high))


def paired_difference(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """AUC of a minus AUC of b with its 95 % interval, both scored on the same resamples.

    Two rankers err on the same rows, so this is far narrower than the difference of two intervals. An
    interval that excludes 0 is a difference these rows can resolve.

    Raises:
        DataError: as `auc`.
    """
    labels, scores_a, weights = _checked(labels, scores_a, None)
    labels, scores_b, _ = _checked(labels, scores_b, None)
    _require_both_classes(labels, weights)
    a, b = RankedRows(labels, scores_a), RankedRows(labels, scores_b)
    drawn = [a.auc(n) - b.auc(n) for n in _row_counts(len(labels), clusters, resamples, seed)]
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
        groups: user or request of each row, [N], for GAUC.
        base_rate: training positive rate, for the normalized entropy.
        weights: row weights, [N]; GAUC does not use them.
        intervals: also bootstrap `auc_low` and `auc_high` over rows (1 s a 100,000 rows).
        seed: of the bootstrap.

    Returns:
        `auc`, `auc_low`, `auc_high`, `gauc_by_samples`, `gauc_by_positives`, `gauc_unweighted`, `log_loss`,
        `normalized_entropy`, `calibration_ratio`, `ece`. The GAUCs are left out where no group has both
        classes: then they do not exist.

    Raises:
        DataError: lengths differ, a label is not 0 or 1, or all labels are the same.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = _checked_probabilities(labels, scores, weights)
    if intervals:
        found = auc_interval(labels, scores, weights, seed=seed)
        result = {"auc": found.value, "auc_low": found.low, "auc_high": found.high}
    else:
        result = {"auc": auc(labels, scores, weights)}
    auc_G, rows_G, positives_G = group_aucs(labels, scores, groups)
    if len(auc_G):
        result["gauc_by_samples"] = _mean(auc_G, rows_G)
        result["gauc_by_positives"] = _mean(auc_G, positives_G)
        result["gauc_unweighted"] = _mean(auc_G, np.ones_like(auc_G))
    result["log_loss"] = log_loss(labels, scores, weights)
    result["normalized_entropy"] = normalized_entropy(labels, scores, base_rate, weights)
    result["calibration_ratio"] = calibration_ratio(labels, scores, weights)
    result["ece"] = ece(labels, scores, weights=weights)
    return result


def _row_counts(rows: int, clusters: np.ndarray | None, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, float64 [N], once a resample."""
    generator = np.random.default_rng(seed)
    if clusters is None:
        units, unit_N = rows, None
    else:
        _require_length("clusters", clusters, np.empty(rows))
        names, unit_N = np.unique(clusters, return_inverse=True)
        units = len(names)
    for _ in range(resamples):
        drawn_U = np.bincount(generator.integers(0, units, units), minlength=units).astype(np.float64)
        yield drawn_U if unit_N is None else drawn_U[unit_N]


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
