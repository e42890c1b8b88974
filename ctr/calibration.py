"""Calibration: a rising function of the logit, fitted on validation rows, that ends the model and its graph.

Fitted in double precision, applied in the model's own. Rows keep their order, so AUC does not change.

Shapes: N rows, K bends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

from ctr.metrics import ece, log_loss

Method = Literal["none", "temperature", "platt", "isotonic"]
BENDS = 25
# Rows keep their order whatever the fit would like: isotonic regression makes steps, and what ranks backwards on the
# validation rows would be turned around.
LEAST_SLOPE = 0.05
MOST_CERTAIN = 1e-4
SUREST = 1e-7  # a float32 probability nearer to 0 or 1 is one


@dataclass(frozen=True)
class Curve:
    """`f(l) = slope l + shift + Σ_k bends_k ReLU(l - at_k)`: a line with K bends.

    Args:
        slope, shift: of the line before the first bend.
        at: logits where it bends, ascending, float64 [K].
        bends: change of slope there, float64 [K].
    """

    slope: float = 1.0
    shift: float = 0.0
    at: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bends: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, [N]."""
        bent = np.maximum(logits[:, None] - self.at, 0) @ self.bends
        return np.asarray(self.slope * logits + self.shift + bent)


class Calibrator(nn.Module):
    """A `Curve` as buffers of the model: saved with it, exported with it. It starts as the identity."""

    slope: Tensor
    shift: Tensor
    at: Tensor
    bends: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("at", torch.zeros(BENDS))
        self.register_buffer("bends", torch.zeros(BENDS))

    def set(self, curve: Curve) -> None:
        """Take another curve, of at most 25 bends."""
        with torch.no_grad():
            self.slope.fill_(curve.slope)
            self.shift.fill_(curve.shift)
            self.at.zero_()
            self.bends.zero_()
            self.at[: len(curve.at)] = torch.from_numpy(curve.at).to(self.at)
            self.bends[: len(curve.bends)] = torch.from_numpy(curve.bends).to(self.bends)

    def forward(self, logit_N: Tensor) -> Tensor:
        """Calibrated logits, [N]."""
        bent_N = torch.relu(logit_N.unsqueeze(-1) - self.at) @ self.bends
        return self.slope * logit_N + self.shift + bent_N


@dataclass(frozen=True)
class Calibrated:
    """What a calibration did to the rows it was fitted on; other rows are the proof.

    Args:
        method: how it was fitted.
        before, after: log loss and ECE.
    """

    method: Method
    before: dict[str, float]
    after: dict[str, float]


def calibrate(
    calibrator: Calibrator, method: Method, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Calibrated:
    """Fit a curve to validation rows and set it.

    Args:
        calibrator: the model's.
        method: how.
        scores: probabilities of the model with its calibrator at the identity, [N].
        labels: 0 or 1, [N].
        weights: of rows, [N].
    """
    inside_N = np.clip(np.asarray(scores, np.float64), SUREST, 1 - SUREST)
    logits_N = np.log(inside_N / (1 - inside_N))
    curve = fit_curve(method, logits_N, labels, weights)
    calibrator.set(curve)
    after_N = 1 / (1 + np.exp(-curve(logits_N)))
    before, after = (
        {"log_loss": log_loss(labels, one, weights), "ece": ece(labels, one, weights=weights)}
        for one in (inside_N, after_N)
    )
    return Calibrated(method, before, after)


def fit_curve(method: Method, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The curve that makes sigmoid(f(logit)) match the labels.

        temperature  f = l / T                 (Guo et al. 2017): sure or unsure overall
        platt        f = a l + b               (Platt 1999): and too high or too low overall
        isotonic     a rising polyline         (Zadrozny and Elkan 2002): wrong by level; wants thousands of rows

    The polyline runs through isotonic regression's value at the centre of up to 25 bins of equal rows, in logits.

    Args:
        method: which.
        logits: of the model, [N].
        labels: 0 or 1, [N].
        weights: of rows, [N].
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    weights = np.ones_like(labels) if weights is None else np.asarray(weights, np.float64)
    match method:
        case "none":
            return Curve()
        case "temperature":
            return _line(logits, labels, weights, with_shift=False)
        case "platt":
            return _line(logits, labels, weights, with_shift=True)
        case "isotonic":
            return _polyline(logits, labels, weights)


def _line(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, with_shift: bool) -> Curve:
    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        found = line[0] * logits + (line[1] if with_shift else 0.0)
        # log(1 + e^f) - y f, without overflow.
        value = weights @ (np.logaddexp(0, found) - labels * found) / weights.sum()
        off = weights * (1 / (1 + np.exp(-found)) - labels) / weights.sum()
        return float(value), np.array([off @ logits, off.sum()])[: len(line)]

    start = np.array([1.0, 0.0] if with_shift else [1.0])
    # A model that ranks no better than chance gets the least slope: nearly the base rate for all, its order kept.
    bounds = [(LEAST_SLOPE, None), (None, None)][: len(start)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Curve(float(found[0]), float(found[1]) if with_shift else 0.0)


def _polyline(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Curve:
    fitted = IsotonicRegression(out_of_bounds="clip").fit(logits, labels, weights)
    order = np.argsort(logits, kind="stable")
    bins = np.array_split(order, min(BENDS, max(2, len(order) // 20)))
    at = np.array([logits[rows].mean() for rows in bins])
    rate = np.array([fitted.predict(logits[rows]).mean() for rows in bins]).clip(MOST_CERTAIN, 1 - MOST_CERTAIN)
    at, first = np.unique(at, return_index=True)
    if len(at) < 2:
        return _line(logits, labels, weights, with_shift=True)
    wanted = np.log(rate / (1 - rate))[first]
    slopes = np.maximum(np.diff(wanted) / np.diff(at), LEAST_SLOPE)
    # Beyond the outer bins a line of slope 1: what is rarer than a bin is not known better than by the model.
    slopes = np.concatenate([[1.0], slopes, [1.0]])
    curve = Curve(1.0, 0.0, at, np.diff(slopes))
    # Raised slopes lift all that follows: set the level so that the mean is right again.
    return Curve(1.0, _level(curve(logits), labels, weights), at, np.diff(slopes))


def _level(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """The shift that makes predicted positives as many as there are, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        too_many = weights @ (1 / (1 + np.exp(-(logits + middle))) - labels) > 0
        low, high = (low, middle) if too_many else (middle, high)
    return (low + high) / 2
