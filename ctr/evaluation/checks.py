"""Checks of labels, scores and row weights that every metric makes before it computes.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np

from features.errors import DataError, NumericalError


def checked(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and weights as float64 [N]; ones where there are no weights.

    Raises:
        DataError: no rows, lengths differ, a label is not 0 or 1, or a weight is negative, not finite, or all are 0.
        NumericalError: a score is not finite.
    """
    labels = np.asarray(labels, np.float64)
    scores = np.asarray(scores, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    if not len(labels):
        raise DataError("no rows to evaluate: the split is empty. Enlarge its share under `split`.")
    require_length("scores", scores, labels)
    require_length("weights", weights, labels)
    wrong = ~((labels == 0) | (labels == 1))
    if wrong.any():
        raise DataError(f"labels: {int(wrong.sum())} of {len(labels)} are not 0 or 1, e.g. {labels[wrong][0]}.")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise DataError(f"weights: must be finite, at least 0, and not all 0; the smallest is {weights.min()}.")
    lost = ~np.isfinite(scores)
    if lost.any():
        raise NumericalError(
            f"scores: {int(lost.sum())} of {len(scores)} are not finite, the first in row "
            f"{int(lost.argmax())}. Lower `train.learning_rate`, or look at that row's columns and vectors."
        )
    return labels, scores, weights


def checked_probabilities(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `checked`, and every score lies between 0 and 1.

    Raises:
        DataError: as `checked`.
        NumericalError: a score is not a probability.
    """
    labels, scores, weights = checked(labels, scores, weights)
    if scores.min() < 0 or scores.max() > 1:
        raise NumericalError(
            f"scores: expected probabilities, got values from {scores.min():.4g} to {scores.max():.4g}. "
            "Apply the sigmoid to logits first."
        )
    return labels, scores, weights


def require_length(name: str, values: np.ndarray, labels: np.ndarray) -> None:
    """Raise DataError unless there is one value for each label."""
    if np.shape(values) != labels.shape:
        raise DataError(f"{name}: shape {np.shape(values)}, but there are {len(labels)} labels.")


def require_both_classes(labels: np.ndarray, weights: np.ndarray) -> None:
    """Raise DataError unless rows of positive weight have both labels."""
    positives = int(labels[weights > 0].sum())
    if positives in (0, int((weights > 0).sum())):
        raise DataError(
            f"AUC needs both classes, but {positives} of {len(labels)} rows are positive. Enlarge the "
            "split, or check `interactions.label` of the data contract."
        )
