from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.calibration import BENDS, Calibrator, Curve, calibrate, fit_curve
from ctr.metrics import auc, ece


def drawn(rows: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True logits and labels."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(-1, 1.2, rows)
    return logits, (draw.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float64)


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_a_curve_bends_where_it_says():
    curve = Curve(slope=2.0, shift=1.0, at=np.array([0.0, 3.0]), bends=np.array([-1.0, 4.0]))
    # Slope 2 up to 0, 1 up to 3, 5 beyond.
    np.testing.assert_allclose(curve(np.array([-1.0, 0.0, 3.0, 4.0])), [-1, 1, 4, 9])
    calibrator = Calibrator().double()
    calibrator.set(curve)
    found = calibrator(torch.tensor([-1.0, 0.0, 3.0, 4.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([-1, 1, 4, 9])


def test_it_starts_as_the_identity():
    logits = torch.randn(100)
    assert torch.equal(Calibrator()(logits), logits)


def test_temperature_undoes_overconfidence():
    logits, labels = drawn()
    curve = fit_curve("temperature", 3 * logits, labels)
    assert curve.slope == pytest.approx(1 / 3, rel=0.05) and curve.shift == 0


def test_platt_finds_slope_and_shift():
    logits, labels = drawn()
    curve = fit_curve("platt", (logits - 0.7) / 0.5, labels)
    assert (curve.slope, curve.shift) == (pytest.approx(0.5, rel=0.05), pytest.approx(0.7, abs=0.05))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_other_rows_are_calibrated_and_keep_their_order(method: str):
    logits, labels = drawn()
    other, other_labels = drawn(seed=1)

    def bent(values: np.ndarray) -> np.ndarray:
        return np.where(values > 0, 3 * values, values) + 1

    curve = fit_curve(method, bent(logits), labels)
    before, after = probability(bent(other)), probability(curve(bent(other)))
    assert ece(other_labels, before) > 0.1
    # A bend in the middle is more than a line can undo.
    assert ece(other_labels, after) < (0.01 if method == "isotonic" else 0.06)
    assert auc(other_labels, after) == pytest.approx(auc(other_labels, before), abs=1e-12)


def test_isotonic_never_ties_or_falls():
    draw = np.random.default_rng(0)
    logits = np.sort(draw.normal(size=2000))
    labels = (draw.random(2000) < 0.5).astype(float)  # nothing to find: isotonic regression alone is nearly flat
    curve = fit_curve("isotonic", logits, labels)
    assert (np.diff(curve(logits)) > 0).all() and len(curve.at) <= BENDS
    assert probability(curve(logits)).mean() == pytest.approx(labels.mean(), abs=1e-6)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_what_ranks_backwards_is_nearly_silenced_and_not_turned_around(method: str):
    logits, labels = drawn()
    curve = fit_curve(method, -logits, labels)
    calibrated = probability(curve(-logits))
    assert calibrated.mean() == pytest.approx(labels.mean(), abs=0.01) and np.quantile(calibrated, 0.99) < 0.5
    assert (np.diff(curve(np.sort(-logits))) > 0).all()


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_weight_of_two_is_the_row_twice(method: str):
    logits, labels = drawn(500)
    weights = 1.0 + (np.arange(500) % 3 == 0)
    twice = np.concatenate([logits, logits[::3]]), np.concatenate([labels, labels[::3]])
    one, other = fit_curve(method, logits, labels, weights), fit_curve(method, *twice)
    assert (one.slope, one.shift) == (pytest.approx(other.slope, abs=1e-4), pytest.approx(other.shift, abs=1e-4))


def test_the_report_tells_before_and_after():
    logits, labels = drawn()
    calibrator = Calibrator()
    found = calibrate(calibrator, "temperature", probability(2 * logits), labels)
    assert found.before["ece"] > 5 * found.after["ece"] and found.after["log_loss"] < found.before["log_loss"]
    assert calibrator.slope.item() == pytest.approx(0.5, rel=0.05)
