"""All metrics at once: equal to the single functions; what does not exist is left out."""

from __future__ import annotations

import numpy as np
import pytest

from ctr.evaluation.bootstrap import auc_interval
from ctr.evaluation.evaluate import evaluate
from ctr.evaluation.metrics import auc, calibration_ratio, ece, gauc_by_samples, log_loss, normalized_entropy
from features.errors import DataError, NumericalError
from tests.ctr.evaluation.scored_rows import rows


def test_evaluate_gives_what_the_single_functions_give():
    labels, scores = rows(2000)
    users = np.random.default_rng(8).integers(0, 100, 2000)
    weights = np.random.default_rng(9).random(2000)
    # Not the rows' rate of about a quarter.
    found = evaluate(labels, scores, users, 0.1, weights, seed=4)
    interval = auc_interval(labels, scores, weights, clusters=users, seed=4)
    expected = {
        "auc": auc(labels, scores, weights),
        "auc_low": interval.low,
        "auc_high": interval.high,
        "gauc_by_samples": gauc_by_samples(labels, scores, users, weights),
        "log_loss": log_loss(labels, scores, weights),
        "normalized_entropy": normalized_entropy(labels, scores, 0.1, weights),
        "calibration_ratio": calibration_ratio(labels, scores, weights),
        "ece": ece(labels, scores, weights=weights),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(set(expected.values())) == 8, "two of them are equal, so that they could be exchanged"
    assert list(found) == list(expected) and all(type(value) is float for value in found.values())


def test_evaluate_leaves_out_what_does_not_exist():
    labels, scores = rows(2000)
    users = np.random.default_rng(8).integers(0, 100, 2000)
    everything = set(evaluate(labels, scores, users, 0.25))
    assert everything - set(evaluate(labels, scores, users, 0.25, intervals=False)) == {"auc_low", "auc_high"}
    # One row a user: there is no GAUC. One user: no other users are known. 999 rows: ECE would be chance.
    assert everything - set(evaluate(labels, scores, np.arange(2000), 0.25)) == {"gauc_by_samples"}
    assert everything - set(evaluate(labels, scores, np.zeros(2000), 0.25)) == {"auc_low", "auc_high"}
    assert everything - set(evaluate(labels[:999], scores[:999], users[:999], 0.25)) == {"ece"}


def test_a_user_without_a_weight_is_no_second_user():
    labels, scores = rows(2000)
    users = np.repeat([0, 1], 1000)
    found = evaluate(labels, scores, users, 0.25, np.where(users == 0, 1.0, 0.0))
    assert "auc_low" not in found


@pytest.mark.parametrize(
    ("labels", "scores", "error", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], DataError, "needs both classes, but 3 of 3"),
        ([0, 0], [0.1, 0.2], DataError, "needs both classes, but 0 of 2"),
        ([0, 3], [0.1, 0.2], DataError, r"1 of 2 are not 0 or 1, e.g. 3"),
        ([0, 1], [0.1, 0.2, 0.3], DataError, "shape"),
        ([], [], DataError, "no rows"),
        ([0, 1], [0.1, np.nan], NumericalError, "1 of 2 are not finite, the first in row 1"),
        ([0, 1], [0.1, 1.5], NumericalError, "expected probabilities"),
    ],
)
def test_what_cannot_be_measured_is_explained(labels, scores, error, message):
    with pytest.raises(error, match=message):
        evaluate(np.array(labels), np.array(scores), np.zeros(len(labels)), 0.5)
