from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.evaluation.metrics import PROBABILITY_MARGIN, auc, ece, log_loss
from ctr.model.calibrator import MOST_KNOTS, Calibrator, Curve
from ctr.training.calibrate import MOST_SLOPE, calibrate, cross_fitted, fit_curve, logits_of, recalibrated
from features.errors import DataError


def drawn(rows: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True logits and labels."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(-1, 1.2, rows)
    return logits, (draw.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float64)


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_a_curve_changes_its_slope_at_its_knots():
    curve = Curve(slope=2.0, shift=1.0, knots=np.array([0.0, 3.0]), slope_changes=np.array([-1.0, 4.0]))
    # Slope 2 up to 0, 1 up to 3, 5 beyond.
    np.testing.assert_allclose(curve(np.array([-1.0, 0.0, 3.0, 4.0])), [-1, 1, 4, 9])
    calibrator = Calibrator().double()
    calibrator.set(curve)
    found = calibrator(torch.tensor([-1.0, 0.0, 3.0, 4.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([-1, 1, 4, 9])


def test_it_starts_as_the_identity():
    logits = torch.randn(100)
    assert torch.equal(Calibrator()(logits), logits)


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
    assert (np.diff(curve(logits)) > 0).all() and len(curve.knots) <= MOST_KNOTS
    assert probability(curve(logits)).mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_isotonic_does_not_make_much_of_rounding():
    """Half of the rows have one logit but for rounding, as cold-start rows do; a tenth of them are positive, by chance.

    The slope between two such bins would be in the thousands, and a server, which rounds otherwise, elsewhere on it.
    """
    draw = np.random.default_rng(0)
    cold = np.float32(-2.3) + 2.4e-7 * draw.integers(-4, 5, 4000)
    for logits in (cold, np.concatenate([cold, draw.normal(-2.3, 1, 4000)])):
        labels = (draw.random(len(logits)) < probability(logits)).astype(float)
        curve = fit_curve("isotonic", logits, labels)
        assert np.abs(curve(logits + 1e-7) - curve(logits)).max() < 1e-5
        assert (curve.slope + np.cumsum(curve.slope_changes)).max() <= MOST_SLOPE + 1e-9
        assert probability(curve(logits)).mean() == pytest.approx(labels.mean(), abs=1e-6)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_what_ranks_backwards_is_nearly_silenced_and_not_turned_around(method: str):
    logits, labels = drawn()
    curve = fit_curve(method, -logits, labels)
    calibrated = probability(curve(-logits))
    assert calibrated.mean() == pytest.approx(labels.mean(), abs=0.01) and np.quantile(calibrated, 0.99) < 0.5
    assert (np.diff(curve(np.sort(-logits))) > 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_weight_of_two_is_the_row_twice(method: str):
    logits, labels = drawn(600)
    weights = 1.0 + (np.arange(600) % 3 == 0)
    twice = np.concatenate([logits, logits[::3]]), np.concatenate([labels, labels[::3]])
    one, other = fit_curve(method, logits, labels, weights), fit_curve(method, *twice)
    found = np.linspace(-4, 3, 50)
    np.testing.assert_allclose(one(found), other(found), atol=1e-3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_heavy_positives_raise_the_curve(method: str):
    logits, labels = drawn(600)
    found = np.linspace(-4, 3, 50)
    light, heavy = (fit_curve(method, logits, labels, 1 + more * labels)(found) for more in (0, 20))
    # The odds of a positive of weight 21 are 21 times as high.
    np.testing.assert_allclose(np.median(heavy - light), np.log(21), atol=0.7)


def test_the_report_tells_before_and_after():
    logits, labels = drawn()
    calibrator = Calibrator()
    found = calibrate(calibrator, "platt", probability(2 * logits), labels, np.arange(40_000) % 500)
    assert found.before["ece"] > 5 * found.after["ece"] and found.after["log_loss"] < found.before["log_loss"]
    assert calibrator.slope.item() == pytest.approx(0.5, rel=0.05)


def test_the_report_is_of_rows_that_did_not_fit():
    # Nothing can be learned: what isotonic finds on 400 rows is chance, and costs on others.
    draw = np.random.default_rng(3)
    scores, labels, users = draw.random(400), (draw.random(400) < 0.5).astype(float), np.arange(400) % 40
    calibrator = Calibrator()
    found = calibrate(calibrator, "isotonic", scores, labels, users)
    curve = fit_curve("isotonic", logits_of(scores), labels)
    in_sample = log_loss(labels, probability(curve(logits_of(scores))))
    assert in_sample < found.after["log_loss"]
    # What is deployed is the curve of all rows.
    expected = curve(np.linspace(-2, 2, 9))
    np.testing.assert_allclose(calibrator(torch.linspace(-2, 2, 9)).numpy(), expected, atol=1e-5)
    assert "ece" not in found.after and "ece" not in found.before, "of 400 rows it is chance"


def test_each_half_of_the_users_is_calibrated_by_the_other():
    logits, labels = drawn(2000)
    scores, users = probability(2 * logits + 1), np.arange(2000) % 50
    found = cross_fitted("platt", scores, labels, users)
    assert found is not None
    # A user whose labels are turned around changes the curve of the other half, never of the user's own.
    turned = cross_fitted("platt", scores, np.where(users == 7, 1 - labels, labels), users)
    changed = {user for user in range(50) if not np.allclose(found[users == user], turned[users == user], atol=1e-9)}
    assert 7 not in changed and len(changed) == 25
    apart = np.isin(users, list(changed))
    by_hand = recalibrated("platt", scores[~apart], labels[~apart], None, scores[apart])
    np.testing.assert_allclose(found[apart], by_hand)


def test_what_cannot_be_halved_is_not_judged():
    scores, labels = np.array([0.2, 0.7, 0.4, 0.6]), np.array([0.0, 1, 0, 1])
    assert cross_fitted("platt", scores, labels, np.zeros(4)) is None
    assert cross_fitted("platt", scores, labels, labels) is None
    assert calibrate(Calibrator(), "platt", scores, labels, np.zeros(4)).after == {}


def test_certain_scores_have_finite_logits():
    surest = np.log((1 - PROBABILITY_MARGIN) / PROBABILITY_MARGIN)
    np.testing.assert_allclose(logits_of(np.array([0.0, 0.5, 1.0])), [-surest, 0, surest], rtol=1e-6)
    # Computed in double precision, whatever the scores are kept in.
    score = np.float32(0.1)
    assert logits_of(np.array([score])) == pytest.approx(np.log(float(score) / (1 - float(score))), rel=1e-12)


def test_labels_without_any_doubt_give_a_finite_curve():
    logits = np.linspace(-3, 3, 400)
    calibrated = fit_curve("isotonic", logits, (logits > 0).astype(float))(logits)
    assert np.isfinite(calibrated).all() and (np.diff(calibrated) > 0).all()


@pytest.mark.parametrize("positives", [1, 20])
def test_rows_that_are_ranked_without_a_mistake_are_not_made_certain(positives: int):
    """One click that stands above all else: the steeper the line the better it fits them, without an end."""
    logits = np.linspace(-1.5, 1.5, 40)
    curve = fit_curve("platt", logits, (np.arange(40) >= 40 - positives).astype(float))
    assert curve.slope == pytest.approx(MOST_SLOPE, rel=1e-6)
    scores = torch.sigmoid(torch.from_numpy(curve(logits)).float()).numpy()
    assert (np.diff(scores[:-1]) > 0).all()


def test_one_score_for_all_becomes_the_rate():
    curve = fit_curve("isotonic", np.zeros(100), np.arange(100) < 30)
    assert probability(curve(np.zeros(1)))[0] == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_what_is_reported_of_a_weight_of_two_is_of_the_row_twice(method: str):
    logits, labels = drawn(4_000)
    users = np.arange(len(labels)) // 10
    weights = np.where(labels == 1, 2.0, 1.0)
    twice = np.repeat(np.arange(len(labels)), weights.astype(int))
    scores = probability(2 * logits)
    weighted = calibrate(Calibrator(), method, scores, labels, users, weights)
    repeated = calibrate(Calibrator(), method, scores[twice], labels[twice], users[twice])
    assert weighted.before["log_loss"] == pytest.approx(repeated.before["log_loss"])
    assert weighted.after["log_loss"] == pytest.approx(repeated.after["log_loss"], abs=1e-4)
    # Rows of weight one would be calibrated to another rate altogether.
    unweighted = calibrate(Calibrator(), method, scores, labels, users)
    assert abs(unweighted.after["log_loss"] - repeated.after["log_loss"]) > 0.01


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize(
    ("labels", "weights", "words"),
    [
        ([0, 0, 0, 0], None, "calibration: the label of all 4 rows is 0, and no curve can be fitted to one label"),
        ([1, 1, 1, 1], None, "calibration: the label of all 4 rows is 1, and no curve can be fitted to one label"),
        ([1, 0, 0, 0], [0, 1, 1, 1], "calibration: the label of all 3 rows of a weight above 0 is 0"),
        ([1, 0, 1, 0], [0, 0, 0, 0], "calibration: the weight of all 4 rows is 0"),
    ],
)
def test_rows_that_no_curve_can_be_fitted_to_are_refused_and_the_calibrator_stays(
    method: str, labels: list[float], weights: list[float] | None, words: str
):
    """Of one label the curve would be as steep as its bounds allow, of weights of 0 it would be NaN."""
    calibrator = Calibrator()
    known = None if weights is None else np.array(weights, float)
    with pytest.raises(DataError, match=words):
        calibrate(calibrator, method, np.array([0.2, 0.7, 0.4, 0.6]), np.array(labels, float), np.arange(4), known)
    assert calibrator.slope == 1 and calibrator.shift == 0


def test_without_calibration_rows_of_one_label_stay_as_they_are():
    labels = np.zeros(4)
    found = calibrate(Calibrator(), "none", np.array([0.2, 0.7, 0.4, 0.6]), labels, np.arange(4))
    assert found.before["log_loss"] == pytest.approx(-np.log(0.8 * 0.3 * 0.6 * 0.4) / 4)
