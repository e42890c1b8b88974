"""Runs of trials whose workers died are closed by others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_sweeps import close_trial


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(tmp_path)


def test_the_run_of_a_dead_worker_is_closed_and_no_other_one(tracker: Tracker) -> None:
    client = tracker.store.client
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        parent = tracker.run_id
    made = {}
    for stage, trial in (("search", "1"), ("search", "2"), ("final", "1")):
        tags = {"mlflow.parentRunId": parent, "stage": stage, "trial": trial}
        experiment = client.get_run(parent).info.experiment_id
        made[stage, trial] = client.create_run(experiment, tags=tags).info.run_id
    close_trial(tracker.store, parent, "search", 1, "retried")
    found = {key: client.get_run(run_id) for key, run_id in made.items()}
    assert {key: one.info.status for key, one in found.items()} == {
        ("search", "1"): "KILLED", ("search", "2"): "RUNNING", ("final", "1"): "RUNNING",
    }  # fmt: skip
    assert found["search", "1"].data.tags["trial_state"] == "retried"
    close_trial(tracker.store, parent, "search", 9, "retried")  # its worker died before it opened a run


def test_a_run_that_has_ended_keeps_its_end(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        parent = tracker.run_id
    with tracker.run("quadrank-toy", "trial", {"stage": "search", "trial": "0"}, {}, parent_run=parent):
        run_id = tracker.run_id
    close_trial(tracker.store, parent, "search", 0, "failed")
    found = tracker.store.client.get_run(run_id)
    assert (found.info.status, found.data.tags["trial_state"]) == ("FINISHED", "failed")
