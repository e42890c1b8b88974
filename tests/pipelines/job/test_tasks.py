"""Several labels in one model: from the log to the scores of a request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ctr.evaluation.metrics import auc
from ctr.reporting.mlflow_registry import Registry
from ctr.serving.ranker import Ranker
from ctr.training.loop import predict_tasks
from pipelines.job.evaluate import task_labels, task_metrics
from pipelines.job.load_run import load_run
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import SMALL, Shell
from tests.pipelines.cli.test_commands import shell as shell
from tests.pipelines.cli.test_commands import work as work

TASKS = ("like", "long_view")


@pytest.fixture(scope="module")
def raw(work):
    from pipelines.cli.commands import main

    with pytest.raises(SystemExit):
        main(["simulate", "--out", str(work / "raw"), "--rows", "20000", "--users", "400", "--items", "300"])
    return work / "raw"


def test_tasks_are_trained_measured_exported_and_served(shell: Shell, raw: Path, work: Path, monkeypatch) -> None:
    data = ["--data", "conf/data/simulated.yaml", "--root", raw, "--work", work]
    code, result = shell("run", *data, *SMALL, "--model", "conf/model/qin_tasks.yaml")
    # One epoch of so few rows loses to popularity, so the gate keeps it from going live.
    assert (code, result["status"], result["exit_code"]) == (6, "gate refused", 6)
    assert "is not above popularity's" in shell.error
    bundles = work / "bundles" / "simulated"
    assert not (bundles / "CURRENT").exists() and (bundles / "NEWEST").read_text() == result["run_id"]
    assert Path(result["bundle"]) == bundles / result["run_id"]
    # The same job again trains nothing, and its refusal stands.
    code, again = shell("run", *data, *SMALL, "--model", "conf/model/qin_tasks.yaml")
    assert (code, again["status"], again["run_id"]) == (6, "gate refused", result["run_id"])
    assert [found["does"] for found in again["stages"].values()] == ["skip"] * 5 + ["leave out"]
    registry = Registry(work)
    assert registry.get_alias("quadrank-simulated", "champion") is None
    assert registry.find_version("quadrank-simulated", result["run_id"]) == "1"
    refused, found = shell("promote", "--bundle", bundles / "NEWEST", "--work", work)
    assert refused == 6 and "is not above popularity's" in found["error"]
    assert not (bundles / "CURRENT").exists() and registry.get_alias("quadrank-simulated", "champion") is None
    code, found = shell("rank", "--bundle", bundles / "CURRENT")
    assert code == 4 and "NEWEST" in found["error"]
    _, model, feature_set = load_run(result["run_id"], Workspace(work))
    scores = predict_tasks(model, feature_set, "test")
    assert tuple(scores) == TASKS
    for name in TASKS:
        labels = task_labels(feature_set, "test", name)
        assert result["tasks"]["test"][name]["auc"] == pytest.approx(auc(labels, scores[name]))
        # Calibrated for itself: likes are rarer than clicks.
        assert scores[name].mean() == pytest.approx(labels.mean(), abs=0.05)

    bundle = Path(result["bundle"])
    code, served = shell("evaluate", "--bundle", bundle, "--work", work)
    assert code == 0
    for name in TASKS:
        assert served["tasks"]["test"][name]["auc"] == pytest.approx(result["tasks"]["test"][name]["auc"], abs=1e-5)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "| model, test: like |" in card and '"tasks": {"like": ' in card

    code, ranked = shell("rank", "--bundle", bundle, "--request", bundle / "request.json")
    assert code == 0 and set(ranked["ranked"][0]["tasks"]) == set(TASKS) and "long_view" in shell.error
    assert Ranker.load(bundle).tasks == TASKS
    golden = json.loads((bundle / "golden.json").read_text())["cases"]
    assert all(len(case["tasks"]["like"]) == len(case["scores"]) for case in golden)

    # Rows whose label is unknown are left out of the metrics.
    labels = task_labels(feature_set, "test", "like")
    half = np.arange(len(labels)) < len(labels) // 2
    known = {"test": np.where(half, labels, np.nan), "train": task_labels(feature_set, "train", "like")}
    monkeypatch.setattr("pipelines.job.evaluate.task_labels", lambda _, split, name: known[split].astype(np.float32))
    found = task_metrics(feature_set, "test", {"like": scores["like"]})["like"]["auc"]
    assert found == pytest.approx(auc(labels[half], scores["like"][half]))
    assert found != result["tasks"]["test"]["like"]["auc"]


def test_a_task_without_a_label_says_the_way_out(shell: Shell, raw: Path, work: Path) -> None:
    data = ["--data", "conf/data/simulated.yaml", "--root", raw, "--work", work]
    code, _ = shell("train", *data, *SMALL, "--set", "model.tasks=[share]")
    assert code == 2 and "no label 'share' (it has: like, long_view)" in shell.error
    code, _ = shell("train", *data, *SMALL, "--set", "train.task_weights.share=2")
    assert code == 2 and "'share' is not one of model.tasks" in shell.error
