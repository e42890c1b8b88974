"""Calibration: a rising function of the logit, fitted on validation rows; the last part of the model and its graph.

Fitted in double precision, applied in the model's precision. It keeps the order of rows, so AUC does not change. The
deployed curve is fitted on all validation rows; its gain is measured on rows that did not fit it (`cross_fitted`).

Shapes: N rows, K knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from ctr.evaluation.metrics import PROBABILITY_MARGIN, equal_mass_bins, likelihoods
from ctr.model.calibrator import MOST_KNOTS, Calibrator, Curve
from features.errors import DataError

Method = Literal["none", "platt", "isotonic"]
# Every slope is at least this, so that AUC does not change: isotonic regression gives slopes of 0, and a model that
# ranks the validation rows backwards would get a negative one.
LEAST_SLOPE = 0.05
# Every slope is at most this. Rows that are ranked without a mistake, as one click above all else, would have an
# endless one, which makes 0 and 1 of all scores; bins of a polyline that rounding alone tells apart would make 0.01 of
# 1e-7.
MOST_SLOPE = 10.0
MOST_CERTAIN = 1e-4  # isotonic rates nearer to 0 or 1 are one: their logits would be infinite


@dataclass(frozen=True)
class Calibrated:
    """The likelihood of the validation rows before and after calibration.

    Args:
        method: how it was fitted.
        before: log loss, and ECE of 1,000 rows or more.
        after: the same of `cross_fitted` scores: each row calibrated by other users' rows. Empty where there are too
            few rows to do that.
    """

    method: Method
    before: dict[str, float]
    after: dict[str, float]


def calibrate(
    calibrator: Calibrator,
    method: Method,
    scores: np.ndarray,
    labels: np.ndarray,
    users: np.ndarray,
    weights: np.ndarray | None = None,
) -> Calibrated:
    """Fit a curve to all validation rows and set it; measure its gain on rows that did not fit it.

    Args:
        calibrator: the model's.
        method: how.
        scores: probabilities of the model with its calibrator at the identity, [N].
        labels: 0 or 1, [N].
        users: of rows, [N].
        weights: of rows, [N].

    Raises:
        DataError: as `fit_curve`; the calibrator stays as it was.
    """
    calibrator.set(fit_curve(method, logits_of(scores), labels, weights))
    other = cross_fitted(method, scores, labels, users, weights)
    after = {} if other is None else likelihoods(labels, other, weights)
    return Calibrated(method, likelihoods(labels, scores, weights), after)


def recalibrated(
    method: Method,
    fit_scores: np.ndarray,
    fit_labels: np.ndarray,
    fit_weights: np.ndarray | None,
    scores: np.ndarray,
) -> np.ndarray:
    """Probabilities [N] of scores [N], by the curve that fits other rows of the same ranker, [M]."""
    return _probabilities(fit_curve(method, logits_of(fit_scores), fit_labels, fit_weights), scores)


def cross_fitted(
    method: Method, scores: np.ndarray, labels: np.ndarray, users: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | None:
    """Probabilities [N], those of each half of the users by the curve of the other half.

    A user's rows are correlated, so they are all in one half. None where there is one user, or a half of one class.

    Args:
        method: how.
        scores: probabilities, [N].
        labels: 0 or 1, [N].
        users: of rows, [N].
        weights: of rows, [N].
    """
    weights = np.ones(len(labels)) if weights is None else weights
    first_N = _first_half(users)
    found = np.empty(len(labels))
    for judged_N in (first_N, ~first_N):
        fit_N = ~judged_N
        if len(np.unique(labels[fit_N & (weights > 0)])) < 2:
            return None
        found[judged_N] = recalibrated(method, scores[fit_N], labels[fit_N], weights[fit_N], scores[judged_N])
    return found


def logits_of(scores: np.ndarray) -> np.ndarray:
    """Logits of probabilities, which are kept `PROBABILITY_MARGIN` away from 0 and 1, float64."""
    inside = np.clip(np.asarray(scores, np.float64), PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return np.log(inside / (1 - inside))


def _probabilities(curve: Curve, scores: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-curve(logits_of(scores)))))


def _first_half(users: np.ndarray) -> np.ndarray:
    """Rows of half of the users, which are drawn at random, the same at every call; bool [N]."""
    names, of_N = np.unique(users, return_inverse=True)
    first_U = np.zeros(len(names), bool)
    first_U[np.random.default_rng(0).permutation(len(names))[: len(names) // 2]] = True
    return np.asarray(first_U[of_N])


def fit_curve(method: Method, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The curve that makes sigmoid(f(logit)) match the labels.

        platt        f = a l + b               (Platt 1999): corrects what is wrong overall; a is from
                                               `LEAST_SLOPE` to `MOST_SLOPE`
        isotonic     a rising polyline         (Zadrozny and Elkan 2002): corrects each level; needs thousands of rows

    The polyline has the slopes between isotonic regression's values at the means of up to 25 bins of equal weight, in
    logits, from `LEAST_SLOPE` to `MOST_SLOPE`. It need not run through these values: its level is the one that predicts
    as many positives as there are.

    Args:
        method: which.
        logits: of the model, [N].
        labels: 0 or 1, [N].
        weights: of rows, [N].

    Raises:
        DataError: the rows that have a weight have one label alone, or none has a weight; `none` fits nothing.
    """
    if method == "none":
        return Curve()
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    _require_both_labels(labels, weights)
    return _line(logits, labels, weights) if method == "platt" else _polyline(logits, labels, weights)


def _require_both_labels(labels: np.ndarray, weights: np.ndarray) -> None:
    counts = weights > 0
    known = np.unique(labels[counts])
    if len(known) > 1:
        return
    way_out = "Take rows of both labels, or set train.calibration to none."
    if not len(known):
        raise DataError(f"calibration: the weight of all {len(labels):,} rows is 0, and none of them counts. {way_out}")
    of = "rows" if counts.all() else "rows of a weight above 0"
    raise DataError(
        f"calibration: the label of all {int(counts.sum()):,} {of} is {known[0]:g}, and no curve can be fitted to one "
        f"label. {way_out}"
    )


def _line(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Curve:
    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        found = line[0] * logits + line[1]
        # log(1 + e^f) - y f, without overflow.
        value = weights @ (np.logaddexp(0, found) - labels * found) / weights.sum()
        off = weights * (1 / (1 + np.exp(-found)) - labels) / weights.sum()
        return float(value), np.array([off @ logits, off.sum()])

    # A model that ranks no better than chance gets the least slope: nearly the base rate for all, its order kept.
    bounds = [(LEAST_SLOPE, MOST_SLOPE), (None, None)]
    slope, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Curve(float(slope), float(shift))


def _polyline(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Curve:
    fitted = IsotonicRegression(out_of_bounds="clip").fit(logits, labels, weights)
    bins = min(MOST_KNOTS, max(2, len(logits) // 20))
    bin_N = equal_mass_bins(logits, weights, bins)
    mass_K, logit_K, rate_K = (
        np.bincount(bin_N, weights * values, bins) for values in (1.0, logits, fitted.predict(logits))
    )
    filled = mass_K > 0
    knots, first = np.unique(logit_K[filled] / mass_K[filled], return_index=True)
    rate = (rate_K[filled] / mass_K[filled]).clip(MOST_CERTAIN, 1 - MOST_CERTAIN)
    if len(knots) < 2:
        return _line(logits, labels, weights)
    calibrated = np.log(rate / (1 - rate))[first]
    inner = np.clip(np.diff(calibrated) / np.diff(knots), LEAST_SLOPE, MOST_SLOPE)
    # Below the first knot and above the last one the slope is 1: no bin says how the model errs there.
    changes = np.diff(np.concatenate([[1.0], inner, [1.0]]))
    # Slopes alone leave the level open, and their bounds have moved it: fit it by the number of positives.
    shift = _level(Curve(1.0, 0.0, knots, changes)(logits), labels, weights)
    return Curve(1.0, shift, knots, changes)


def _level(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The shift that makes predicted positives as many as there are, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        too_many = weights @ (1 / (1 + np.exp(-(logits + middle))) - labels) > 0
        low, high = (low, middle) if too_many else (middle, high)
    return (low + high) / 2
