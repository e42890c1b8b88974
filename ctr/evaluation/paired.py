"""Two rankers on the same rows: differences of their metrics with intervals, paired by user.

Shapes: N rows, G groups that have both classes, U users, B resamples.
"""

from __future__ import annotations

import numpy as np

from ctr.evaluation.bootstrap import Interval, UserDraws, percentile_interval
from ctr.evaluation.checks import checked_probabilities, require_both_classes, require_length
from ctr.evaluation.metrics import PROBABILITY_MARGIN, RankedRows, group_aucs

AUC, GROUP_AUC, LOG_LOSS = "auc", "group_auc", "log_loss"


def paired_differences(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> dict[str, Interval]:
    """Each metric of a minus that of b, with its 95 % interval over users.

    Both rankers are judged on the same resamples of users, so users that are hard for both cancel. A user is drawn with
    all rows and all groups of theirs; a group belongs to the user of its first row.

    Args:
        labels: 0 or 1, [N].
        scores_a, scores_b: probabilities, [N].
        groups: request of each row, or its user where the log names no requests, [N].
        weights: row weights, [N]; none means ones.
        clusters: user of each row, [N].
        seed: of the draws.

    Returns:
        `auc`, `log_loss` in nats, and `group_auc` (the mean AUC of the groups that have both classes, weighted by their
        rows) where there is such a group.

    Raises:
        DataError: lengths differ, a label is not 0 or 1, or all labels are the same.
        NumericalError: a score is not a probability.
    """
    labels, scores_a, weights = checked_probabilities(labels, scores_a, weights)
    labels, scores_b, _ = checked_probabilities(labels, scores_b, weights)
    require_length("groups", groups, labels)
    require_length("clusters", clusters, labels)
    require_both_classes(labels, weights)
    ranked_a, ranked_b = RankedRows(labels, scores_a), RankedRows(labels, scores_b)
    added = {LOG_LOSS: ((_losses(labels, scores_a) - _losses(labels, scores_b)) * weights, weights)}
    apart_N, weight_N = _group_differences(labels, scores_a, scores_b, groups, weights)
    if weight_N.any():
        added[GROUP_AUC] = (apart_N, weight_N)
    draws = UserDraws(clusters)
    sums = {name: draws.sums(np.stack(pair, axis=1)) for name, pair in added.items()}
    drawn: dict[str, list[float]] = {AUC: [], **{name: [] for name in added}}
    # The same seed gives the same users by row and by user.
    for times_N, times_U in zip(draws.by_row(seed), draws.by_user(seed), strict=True):
        drawn[AUC].append(ranked_a.auc(times_N * weights) - ranked_b.auc(times_N * weights))
        for name, sums_U2 in sums.items():
            drawn[name].append(_ratio(times_U @ sums_U2))
    values = {AUC: ranked_a.auc(weights) - ranked_b.auc(weights)}
    values |= {name: _ratio(sums_U2.sum(axis=0)) for name, sums_U2 in sums.items()}
    found = {}
    for name, value in values.items():
        low, high = percentile_interval(np.array(drawn[name]))
        found[name] = Interval(value, float(low), float(high))
    return found


def _losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row in nats, [N]."""
    inside_N = np.clip(scores, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    losses_N: np.ndarray = -np.log(np.where(labels > 0, inside_N, 1 - inside_N))
    return losses_N


def _group_differences(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Difference of a group's AUC times its weight, and the weight, at the group's first row; 0 elsewhere, [N]."""
    auc_G, weight_G = group_aucs(labels, scores_a, groups, weights)
    other_G, _ = group_aucs(labels, scores_b, groups, weights)
    _, first, number_N = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    # Not the group's weight less that of its clicks: beside heavy clicks a light row would be lost in rounding.
    has_both = (np.bincount(number_N, labels * weights) > 0) & (np.bincount(number_N, (1 - labels) * weights) > 0)
    # As `group_aucs`: groups in the order in which they appear.
    place_G = np.sort(first[has_both])
    apart_N, weight_N = np.zeros(len(labels)), np.zeros(len(labels))
    apart_N[place_G], weight_N[place_G] = (auc_G - other_G) * weight_G, weight_G
    return apart_N, weight_N


def _ratio(sums: np.ndarray) -> float:
    """A weighted mean of its two sums; NaN where the weights are 0."""
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")
