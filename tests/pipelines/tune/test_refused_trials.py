"""Trials that end without a value: pruned, refused, or failed with a reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from ctr.reporting.mlflow_store import MlflowStore
from features.errors import ConfigError
from pipelines.job.train import Job, Trained
from pipelines.tune.workers.standing import ERROR, state_of
from tests.pipelines.tune.sweeping import load, run

pytestmark = pytest.mark.usefixtures("place")


def test_a_trial_that_is_pruned_is_recorded_as_pruned(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trial is worse than the first at its second evaluation; the pruner goes by the median there."""
    values = iter([0.7, 0.8, 0.6, 0.5])
    report = optuna.trial.Trial.report
    monkeypatch.setattr(optuna.trial.Trial, "report", lambda trial, _, step: report(trial, next(values), step))
    found = run(work, "pruned", 2, schedule="median")
    assert [one.state.name for one in found.trials] == ["COMPLETE", "PRUNED"] and found.winner.trial == 0
    client = MlflowStore(work).client
    experiment = client.get_run(found.parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.parent}'")
    assert {one.data.tags["trial"]: one.data.tags["trial_state"] for one in children} == {
        "0": "complete",
        "1": "pruned",
    }


@pytest.mark.parametrize(
    ("searched", "words"),
    [
        (
            {"model.layers": {"low": 1.0, "high": 3.0}},
            r"a value of the search space cannot be used: model.layers = 1\.7",
        ),
        (
            {"model.rows": {"low": 1, "high": 2, "when": {"data.history.maxlen": 9}}},
            "model.rows: when: there is no setting 'data.history.maxlen'",
        ),
        (
            {
                "model.tower": {"choices": ["mlp", "cross"]},
                "model.rows": {"low": 1, "high": 2, "when": {"model.tower": "quadratic"}},
            },
            "model.rows: when: model.tower is never 'quadratic', its range is mlp, cross",
        ),
    ],
)
def test_a_space_that_no_trial_could_be_drawn_from_is_refused(work: Path, searched: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(work, "odd", 1, space=searched)


def test_settings_that_cannot_be_trained_are_a_failed_trial_with_the_reason(work: Path) -> None:
    """The current settings can be; a batch of more rows than there are cannot."""
    found = run(work, "failed", 2, sampler="grid", space={"train.batch_size": {"choices": [256, 100_000]}})
    assert [state_of(one, found.trials) for one in found.trials] == ["complete", "failed"]
    assert "Set train.batch_size between 2 and" in found.trials[1].user_attrs[ERROR]
    assert found.summary()["trials"] == {"complete": 1, "failed": 1}


def test_a_trial_that_would_not_fit_into_memory_is_refused_with_the_figure(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tune.trial.free_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"none of 1 trials was trained to its end.*needs about 0.0 GiB of memory"):
        run(work, "large", 1)


def test_the_most_frequent_reason_is_told_with_how_often_it_came(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reasons hold figures, so that each may have come once."""
    free = iter([0, 0, 2**32])
    monkeypatch.setattr("pipelines.tune.trial.free_bytes", lambda: next(free))
    monkeypatch.setattr("pipelines.tune.workers.host.estimated_bytes", lambda *about: 2**40)
    with pytest.raises(ConfigError, match=r"none of 3 trials was trained to its end\. 2 of them: needs about 1024\.0"):
        run(work, "reasons", 3)


def test_a_trial_that_is_refused_is_a_failed_run_in_mlflow(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study goes on, and its run has a child that says why."""
    free = iter([1000, None])
    monkeypatch.setattr("pipelines.tune.trial.free_bytes", lambda: next(free))
    found = run(work, "refused", 2)
    assert found.summary()["trials"] == {"complete": 1, "failed": 1}
    client = MlflowStore(work).client
    experiment = client.get_run(found.parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.parent}'")
    refused = next(one for one in children if one.data.tags["trial"] == "0")
    assert (refused.info.status, refused.data.tags["trial_state"]) == ("FAILED", "failed")
    assert "GiB of memory" in refused.data.tags["error"]
    assert refused.data.params == {name: str(value) for name, value in found.trials[0].params.items()}
    assert len(children) == 2


def test_a_metric_that_the_rows_do_not_have_is_a_failed_trial(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna would fail it without a word, and the worker would try it again."""
    fit = Job.fit

    def blank(self: Job, *rest: Any, **named: Any) -> Trained:
        fitted = fit(self, *rest, **named)
        fitted.result.best["auc"] = math.nan
        return fitted

    with monkeypatch.context() as patch:
        patch.setattr(Job, "fit", blank)
        with pytest.raises(ConfigError, match=r"none of 1 trials.*the auc of the validation rows is nan"):
            run(work, "blank", 1)
    assert len(load(work, "blank").trials) == 1
