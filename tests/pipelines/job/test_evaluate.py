"""A bundle evaluated beside its torch model: drawn negatives are undone, row weights count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.config import ModelConfig, TrainConfig
from ctr.data.columns import column, row_weights, training_rate
from ctr.evaluation.baselines import popularity_scores
from ctr.evaluation.metrics import auc, log_loss
from ctr.export.export_bundle import export_bundle
from ctr.export.ranker_as_of import ranker_as_of
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.ranker import Ranker
from ctr.training.calibrate import recalibrated
from ctr.training.loop import predict
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.errors import ConfigError, DataError
from features.progress import silent
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import Scored, _served_scores, controls, evaluate_bundle, score_split
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.workspace import Workspace

ITEMS, ROWS = 40, 1500


def contract(raw: Path) -> Contract:
    return Contract.model_validate(
        {
            "name": "takes",
            "root": str(raw),
            "interactions": {
                "path": "log.parquet",
                "user": "user",
                "item": "item",
                "time": "time",
                "weight": "importance",
                "negatives": {"per_positive": 3, "how": "uniform", "seed": 1},
            },
            "checks": {"earliest": "1970-01-01"},
            "history": {"max_len": 4},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A log of positives, a tenth of whose items are taken most; a small model of it and its bundle."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "raw").mkdir()
    draw = np.random.default_rng(0)
    often = np.where(np.arange(ITEMS) < ITEMS // 10, 6.0, 1.0)
    pl.DataFrame(
        {
            "user": draw.integers(300, size=ROWS),
            "item": draw.choice(ITEMS, size=ROWS, p=often / often.sum()),
            "time": np.sort(draw.integers(10**6, size=ROWS)),
            "importance": draw.choice([1.0, 4.0], size=ROWS),
        }
    ).write_parquet(folder / "raw" / "log.parquet")
    workspace = Workspace(folder)
    feature_set = build_feature_set(contract(folder / "raw"), workspace.feature_sets).feature_set
    model = new_model(ModelConfig(attention="mean", tower="linear", embedding_dim=4), feature_set, 1)
    config = TrainConfig(epochs=3, batch_size=256, evaluations_per_epoch=1, learning_rate=0.05, device="cpu")
    fit_and_calibrate(model, feature_set, config, folder / "run", progress=silent)
    judged = score_split(model, feature_set, "test")
    export_bundle(
        model,
        feature_set,
        folder / "bundle",
        model_version="run",
        architecture="linear",
        metrics={"test": judged.metrics()},
        controls={},
        git_revision="none",
    )
    return feature_set, model, folder / "bundle", workspace


# Ranking metrics count pairs: two equal scores that ONNX rounds apart by one bit change them by half a pair.
RANKING = {"auc", "auc_low", "auc_high", "gauc_by_samples"}
ROUNDING = 1e-6  # more than two scores of one pair differ between ONNX and torch


def served_test_scores(feature_set: FeatureSet, bundle: Path) -> np.ndarray:
    with ranker_as_of(Ranker.load(bundle), feature_set) as then:
        return np.stack(list(_served_scores(then, feature_set, "test")))[:, 0]


def test_the_scores_of_the_bundle_are_those_of_the_model(trained):
    feature_set, model, bundle, _ = trained
    served = served_test_scores(feature_set, bundle).astype(np.float64)
    odds = served / (1 - served) / feature_set.manifest.sampling.rate
    scores = (odds / (1 + odds)).astype(np.float32)
    expected = predict(model, feature_set, "test")
    assert logit_difference(scores, expected) <= TOLERANCE
    np.testing.assert_allclose(scores, expected, rtol=0, atol=ROUNDING / 2)


def test_rows_without_labels_are_refused_before_they_are_scored(trained, monkeypatch):
    feature_set, _, bundle, workspace = trained
    windows = feature_set.manifest.windows
    unlabelled = windows | {"test": windows["test"].model_copy(update={"labelled": False})}
    manifest = feature_set.manifest.model_copy(update={"windows": unlabelled})
    monkeypatch.setattr(FeatureSet, "open", lambda folder: FeatureSet(feature_set.path, manifest))
    monkeypatch.setattr("pipelines.job.evaluate._served_scores", lambda *_: pytest.fail("rows are scored"))
    with pytest.raises(ConfigError, match=r"--split test: no row of it has a label in .*\. Choose --split valid\."):
        evaluate_bundle(bundle, "test", workspace, Console(quiet=True))


def test_rows_of_one_label_are_refused_before_they_are_scored(trained, monkeypatch):
    _, _, bundle, workspace = trained
    monkeypatch.setattr("pipelines.job.evaluate.column", lambda *_: np.ones(9, np.float32))
    monkeypatch.setattr("pipelines.job.evaluate.row_weights", lambda *_: np.ones(9))
    monkeypatch.setattr("pipelines.job.evaluate._served_scores", lambda *_: pytest.fail("rows are scored"))
    with pytest.raises(DataError, match="test rows"):
        evaluate_bundle(bundle, "test", workspace, Console(quiet=True))


def test_the_metrics_of_the_bundle_are_those_of_the_model(trained):
    feature_set, model, bundle, workspace = trained
    found = evaluate_bundle(bundle, "test", workspace, Console(quiet=True)).metrics["test"]
    judged = score_split(model, feature_set, "test")
    expected = judged.metrics()
    assert set(found) == set(expected)
    for name in set(found) - RANKING:
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    # User 231 has two rows of one item to which torch gives the same score, and ONNX scores that are one bit apart.
    # Whatever rounding does, each pair is at best as if all positives scored `ROUNDING` more, at worst as if less.
    worst, best = (
        replace(judged, scores=judged.scores.astype(np.float64) + shift * judged.labels).metrics()
        for shift in (-ROUNDING, ROUNDING)
    )
    for name in RANKING:
        assert worst[name] <= found[name] <= best[name]
        assert best[name] - worst[name] < 2e-3, "the bound is no bound"
    # Without undoing the sampling, the graph's probabilities would be some ten times too low.
    assert found["calibration_ratio"] == pytest.approx(1, abs=0.4)
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    scores = predict(model, feature_set, "test")
    assert found["auc"] == pytest.approx(auc(labels, scores, weights), abs=1e-4)
    assert abs(found["log_loss"] - log_loss(labels, scores)) > 1e-3, "rows count by their weight"


def test_what_is_served_is_the_rate_of_the_whole_log(trained):
    feature_set, _, bundle, _ = trained
    sampling = feature_set.manifest.sampling
    assert sampling is not None and sampling.rate is not None and sampling.rate < 0.2
    served = served_test_scores(feature_set, bundle)
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    # Each drawn negative stands for 1 / rate of the log as it happened.
    stands_for = weights * np.where(labels > 0, 1.0, 1 / sampling.rate)
    rate = np.average(labels, weights=stands_for)
    assert np.average(served, weights=stands_for) == pytest.approx(rate, rel=0.4)
    assert training_rate(feature_set) > 5 * rate


def test_popularity_is_calibrated_as_the_model_beside_it(trained):
    feature_set: FeatureSet = trained[0]
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    raw, valid = (popularity_scores(feature_set, split) for split in ("test", "valid"))
    expected = recalibrated("platt", valid, labels, weights, raw)
    of_test = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    found = {method: controls(feature_set, "test", method)["popularity"] for method in ("platt", "none")}
    assert found["platt"]["log_loss"] == pytest.approx(log_loss(of_test[0], expected, of_test[1]))
    assert found["none"]["log_loss"] == pytest.approx(log_loss(of_test[0], raw, of_test[1]))
    assert found["platt"]["auc"] == pytest.approx(found["none"]["auc"])
    # On the rows that fit it, each user is calibrated by other users.
    in_sample = log_loss(labels, recalibrated("platt", valid, labels, weights, valid), weights)
    assert controls(feature_set, "valid")["popularity"]["log_loss"] > in_sample


@pytest.mark.parametrize("weighed", [(1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)])
def test_metrics_of_lists_are_left_out_where_no_list_has_both_labels_and_a_weight(weighed: tuple[float, ...]):
    """Rows 0 and 1 are a list of both labels only where they are one request; it weighs nothing there."""
    labels, scores, users = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.2, 0.6, 0.4]), np.array([1, 1, 2, 2])
    requests = np.arange(4) if all(weighed) else np.array([0, 0, 1, 2])
    judged = Scored(labels, scores, users, base_rate=0.5, weights=np.array(weighed), requests=requests)
    without = replace(judged, requests=None)
    assert judged.metrics() == without.metrics()
    assert judged.metrics()["auc"] == 1.0
