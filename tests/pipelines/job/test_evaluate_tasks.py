"""A bundle evaluated on a log with context, feedback, counters, requests, and a further label."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.config import ModelConfig, TrainConfig
from ctr.data.columns import column, row_weights
from ctr.evaluation.baselines import popularity_scores
from ctr.evaluation.evaluate import evaluate
from ctr.evaluation.metrics import auc, log_loss
from ctr.export.export_bundle import export_bundle
from ctr.training.calibrate import cross_fitted
from ctr.training.loop import predict, predict_tasks
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.progress import silent
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import controls, evaluate_bundle, score_split, task_labels, task_metrics
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.workspace import Workspace

ROWS = 1200


def log() -> pl.DataFrame:
    """Four rows a request; the hour decides much, the item some; a fifth of the likes is unknown."""
    draw = np.random.default_rng(1)
    requests = ROWS // 4
    hour, item = np.repeat(draw.integers(3, size=requests), 4), draw.integers(30, size=ROWS)
    probability = 0.1 + 0.25 * hour + 0.2 * (item < 10)
    clicked = draw.random(ROWS) < probability
    like = np.where(draw.random(ROWS) < 0.2, np.nan, clicked & (draw.random(ROWS) < 0.5))
    return pl.DataFrame(
        {
            "user": np.repeat(draw.integers(60, size=requests), 4),
            "item": item,
            "time": np.repeat(np.arange(requests) * 100, 4),
            "request": np.repeat(np.arange(requests), 4),
            "hour": np.array(["night", "day", "evening"])[hour],
            "clicked": clicked.astype(int),
            "like": pl.Series(like, nan_to_null=True),
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    log().write_parquet(folder / "log.parquet")
    contract = Contract.model_validate(
        {
            "name": "shop",
            "root": str(folder),
            "interactions": {
                "path": "log.parquet",
                "user": "user",
                "item": "item",
                "time": "time",
                "request": "request",
                "label": "clicked",
                "labels": {"like": "like"},
                "context": {"hour": {"type": "categorical"}},
            },
            "counters": {"rate": {"of": "item", "value": "rate"}},
            "checks": {"earliest": "1970-01-01", "duplicate": "warn"},
            "history": {"max_len": 8, "columns": {"label": {"type": "categorical"}}},
        }
    )
    workspace = Workspace(folder)
    feature_set = build_feature_set(contract, workspace.feature_sets).feature_set
    config = ModelConfig(attention="mean", tower="linear", embedding_dim=4, tasks=("like",))
    model = new_model(config, feature_set, 1)
    train = TrainConfig(epochs=2, batch_size=128, evaluations_per_epoch=1, learning_rate=0.05, device="cpu")
    fit_and_calibrate(model, feature_set, train, folder / "run", progress=silent)
    export_bundle(
        model,
        feature_set,
        folder / "bundle",
        model_version="run",
        architecture="linear",
        metrics={"test": score_split(model, feature_set, "test").metrics()},
        controls={},
        git_revision="none",
    )
    return feature_set, model, folder / "bundle", workspace


def test_every_metric_of_the_bundle_is_that_of_the_model(trained):
    feature_set, model, bundle, workspace = trained
    found = evaluate_bundle(bundle, "test", workspace, Console(quiet=True))
    assert found.metrics["test"] == pytest.approx(score_split(model, feature_set, "test").metrics(), abs=1e-4)
    assert found.metrics["test"]["groups"] > 10 and 0 < found.metrics["test"]["mrr"] <= 1
    tasks = task_metrics(feature_set, "test", predict_tasks(model, feature_set, "test"))
    assert tuple(found.tasks["test"]) == ("like",)
    assert found.tasks["test"]["like"] == pytest.approx(tasks["like"], abs=1e-4)
    assert found.feature_set == str(feature_set.path) and found.rows == {
        "test": len(column(feature_set, "test", "user"))
    }


def test_the_metrics_of_a_task_are_of_rows_whose_label_is_known(trained):
    feature_set, model, _, _ = trained
    labels, scores = task_labels(feature_set, "test", "like"), predict_tasks(model, feature_set, "test")["like"]
    known = ~np.isnan(labels)
    train = task_labels(feature_set, "train", "like")
    users, weights = column(feature_set, "test", "user"), row_weights(feature_set, "test")
    expected = evaluate(labels[known], scores[known], users[known], float(np.nanmean(train)), weights[known])
    assert 0 < known.sum() < len(known)
    assert task_metrics(feature_set, "test", {"like": scores}) == {"like": pytest.approx(expected)}


def test_a_task_of_one_class_has_no_metrics(trained, monkeypatch: pytest.MonkeyPatch):
    feature_set: FeatureSet = trained[0]
    rows = len(column(feature_set, "test", "user"))
    monkeypatch.setattr("pipelines.job.evaluate.task_labels", lambda *asked: np.zeros(rows))
    assert task_metrics(feature_set, "test", {"like": np.full(rows, 0.5)}) == {}


def replaced_labels(feature_set: FeatureSet, train: float | None) -> dict[str, np.ndarray]:
    """Both classes in the test rows; in the training rows one value for all, or what it is."""
    rows = {split: feature_set.manifest.windows[split].rows for split in ("train", "test")}
    known = task_labels(feature_set, "train", "like") if train is None else np.full(rows["train"], train)
    return {"train": known, "test": np.arange(rows["test"]) % 2.0}


@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0])
def test_a_task_that_training_could_not_learn_has_no_metrics(
    trained, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    feature_set: FeatureSet = trained[0]
    labels = replaced_labels(feature_set, value)
    monkeypatch.setattr("pipelines.job.evaluate.task_labels", lambda _, split, name: labels[split])
    assert task_metrics(feature_set, "test", {"like": np.full(len(labels["test"]), 0.5)}) == {}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_whose_rows_of_one_class_weigh_nothing_has_no_metrics(
    trained, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    feature_set: FeatureSet = trained[0]
    labels = replaced_labels(feature_set, None)
    weights = {name: np.ones(len(values)) for name, values in labels.items()}
    monkeypatch.setattr("pipelines.job.evaluate.task_labels", lambda _, asked, name: labels[asked])
    monkeypatch.setattr("pipelines.job.evaluate.row_weights", lambda _, asked: weights[asked])
    scores = {"like": np.full(len(labels["test"]), 0.5)}
    assert set(task_metrics(feature_set, "test", scores)) == {"like"}
    weights[split] = np.where(labels[split] == 1, 0.0, 1.0)
    assert task_metrics(feature_set, "test", scores) == {}


def test_the_optimum_stands_beside_popularity_where_the_truth_is_known(trained, monkeypatch: pytest.MonkeyPatch):
    feature_set, model, _, _ = trained
    truth = predict(model, feature_set, "test")
    monkeypatch.setattr("pipelines.job.evaluate.optimum_scores", lambda of, split: truth if split == "test" else None)
    found = controls(feature_set, "test")
    assert set(found) == {"popularity", "optimum"}
    assert found["optimum"]["auc"] == pytest.approx(auc(column(feature_set, "test", "label"), truth))


def test_on_validation_rows_popularity_is_calibrated_by_other_users(trained):
    feature_set: FeatureSet = trained[0]
    labels, users = column(feature_set, "valid", "label"), column(feature_set, "valid", "user")
    weights = row_weights(feature_set, "valid")
    apart = cross_fitted("platt", popularity_scores(feature_set, "valid"), labels, users, weights)
    assert apart is not None
    found = controls(feature_set, "valid")["popularity"]["log_loss"]
    assert found == pytest.approx(log_loss(labels, apart, weights))
