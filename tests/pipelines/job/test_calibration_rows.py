"""The rows of a calibration: which of them fit the curve, and which judge it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ctr.config import ModelConfig, TrainConfig
from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import log_loss
from ctr.model.calibrator import Curve
from ctr.training.calibrate import cross_fitted, fit_curve, logits_of
from ctr.training.loop import predict
from features.progress import silent
from pipelines.job.fitting import CALIBRATION, fit_and_calibrate, new_model
from tests.toy import toy_feature_set

SMALL = ModelConfig(attention="mean", tower="linear", embedding_dim=4, vector_dim=4)
CONFIG = TrainConfig(epochs=1, batch_size=256, evaluations_per_epoch=1, learning_rate=0.02, device="cpu")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitting")
    feature_set = toy_feature_set(folder / "toy")
    model = new_model(SMALL, feature_set, 1)
    fit_and_calibrate(model, feature_set, CONFIG, folder / "run", progress=silent)
    return feature_set, model, folder / "run"


def before_calibration(model, feature_set, split) -> np.ndarray:
    """Scores with the calibrator at the identity; it is put back."""
    kept = {name: values.clone() for name, values in model.calibrator.state_dict().items()}
    model.calibrator.set(Curve())
    scores = predict(model, feature_set, split)
    model.calibrator.load_state_dict(kept)
    return scores


def test_the_curve_is_fitted_on_the_weighted_validation_rows(fitted):
    feature_set, model, _ = fitted
    scores = before_calibration(model, feature_set, "valid")
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    expected = fit_curve("platt", logits_of(scores), labels, weights)
    found = (model.calibrator.slope.item(), model.calibrator.shift.item())
    assert found == pytest.approx((expected.slope, expected.shift), rel=1e-4)
    # Neither the rows without weights nor those of training would give it.
    train = (before_calibration(model, feature_set, "train"), column(feature_set, "train", "label"))
    for other in (fit_curve("platt", logits_of(scores), labels), fit_curve("platt", logits_of(train[0]), train[1])):
        assert abs(other.shift - expected.shift) > 0.01


def test_what_it_is_worth_is_told_of_rows_that_did_not_fit_it(fitted):
    feature_set, model, folder = fitted
    record = json.loads((folder / CALIBRATION).read_text())
    scores = before_calibration(model, feature_set, "valid")
    labels, users, weights = (
        column(feature_set, "valid", "label"),
        column(feature_set, "valid", "user"),
        row_weights(feature_set, "valid"),
    )
    apart = cross_fitted("platt", scores, labels, users, weights)
    assert record["before"] == pytest.approx({"log_loss": log_loss(labels, scores, weights)})
    assert record["after"] == pytest.approx({"log_loss": log_loss(labels, apart, weights)}, rel=1e-4)
    deployed = log_loss(labels, predict(model, feature_set, "valid"), weights)
    assert record["after"]["log_loss"] > deployed + 1e-5, "rows that fitted the curve flatter it"
