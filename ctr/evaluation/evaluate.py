"""All metrics of one set of scored rows, with the interval of AUC.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np

from ctr.evaluation.bootstrap import auc_interval
from ctr.evaluation.checks import checked_probabilities, require_length
from ctr.evaluation.metrics import auc, calibration_ratio, gauc_by_samples, likelihoods, normalized_entropy


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
        weights: row weights, [N]; none means ones.
        intervals: also bootstrap `auc_low` and `auc_high` over users (1 s a 100,000 rows).
        seed: of the bootstrap.

    Returns:
        `auc`, `auc_low`, `auc_high`, `gauc_by_samples`, `log_loss` (nats), `normalized_entropy`, `calibration_ratio`,
        `ece`. Metrics that do not exist are left out: the GAUC where no group has both classes, the interval where all
        rows with a weight are one user's, the ECE of fewer than 1,000 rows.

    Raises:
        DataError: lengths differ, a label is not 0 or 1, or all labels are the same.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = checked_probabilities(labels, scores, weights)
    require_length("groups", groups, labels)
    result = {"auc": auc(labels, scores, weights)}
    if intervals and len(np.unique(np.asarray(groups)[weights > 0])) > 1:
        interval = auc_interval(labels, scores, weights, clusters=groups, seed=seed)
        result |= {"auc_low": interval.low, "auc_high": interval.high}
    gauc = gauc_by_samples(labels, scores, groups, weights)
    if not np.isnan(gauc):
        result["gauc_by_samples"] = gauc
    likely = likelihoods(labels, scores, weights)
    result["log_loss"] = likely.pop("log_loss")
    result["normalized_entropy"] = normalized_entropy(labels, scores, base_rate, weights)
    result["calibration_ratio"] = calibration_ratio(labels, scores, weights)
    return result | likely
