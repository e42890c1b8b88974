"""Runs in MLflow of processes that were killed: at their end they are ended by the next, at their begin found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.reporting.entries import BeginRun, Known
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import OUTBOX, Outbox
from features.store.feature_set import FeatureSet
from pipelines.job import tracked
from pipelines.job.tracked import end_left_open, tracked_id
from pipelines.job.train import Job
from pipelines.operate.waiting import send_waiting
from pipelines.workspace import Workspace, run_lock
from tests.ctr.reporting.mlflow_server import free_port
from tests.toy import toy_feature_set

PRESET = Preset(model=ModelConfig(), train=TrainConfig())

KILLED = json.dumps({"host": "gone", "pid": 7, "since": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Runs of MLflow that were ended, with their state."""
    found: list[tuple[Any, ...]] = []

    class Told:
        def __init__(self, root: Path, outbox: Path) -> None:
            self.outbox = outbox

        def end(self, run_id: str, status: str) -> None:
            found.append((self.outbox.parent.name, run_id, status))

    monkeypatch.setattr(tracked, "Tracker", Told)
    monkeypatch.setattr("pipelines.locks.SILENT_AFTER", -1.0)
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    for name, text in (("metrics.json", "{}"), ("mlflow_run_id", "m1"), (".lock", KILLED)):
        (folder / name).write_text(text)
    return folder


def test_a_finished_run_of_a_killed_process_is_ended_once(run_dir: Path, ended: list[Any]) -> None:
    workspace = Workspace(run_dir.parents[1])
    end_left_open(workspace)
    end_left_open(workspace)
    assert ended == [("first", "m1", "FINISHED")]


@pytest.mark.parametrize(("file", "text"), [("metrics.json", None), ("mlflow_run_id", None), (".lock", "")])
def test_another_run_is_left(run_dir: Path, ended: list[Any], file: str, text: str | None) -> None:
    """One that is not finished, was never tracked, or whose process gave its lock back."""
    (run_dir / file).unlink()
    if text is not None:
        (run_dir / file).write_text(text)
    end_left_open(Workspace(run_dir.parents[1]))
    assert ended == []


def test_a_run_that_a_process_works_in_is_left(run_dir: Path, ended: list[Any]) -> None:
    with run_lock(run_dir):
        end_left_open(Workspace(run_dir.parents[1]))
    assert ended == []


class KillNow(BaseException):
    """Stands for SIGKILL: nothing handles it."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def data(workspace: Workspace) -> FeatureSet:
    return toy_feature_set(workspace.feature_sets / "toy" / "v1", rows=400, users=20)


@pytest.fixture
def orphan(workspace: Workspace, data: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run that was killed when MLflow had made its run, and before it was told which."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = Job.start(PRESET, data, workspace, Console(quiet=True))
    deliver = BeginRun.deliver

    def killed(self: BeginRun, store: MlflowStore, known: Known) -> None:
        deliver(self, store, Known())
        raise KillNow

    with monkeypatch.context() as patch:
        patch.setattr(BeginRun, "deliver", killed)
        with pytest.raises(KillNow), job.tracked():
            pass
    return job


def in_mlflow(job: Job) -> list[tuple[str, str]]:
    """MLflow's id and state of each run of this run's name."""
    client = MlflowStore(job.workspace.root).client
    experiment = client.get_experiment_by_name(f"quadrank-{job.contract.name}").experiment_id
    found = client.search_runs([experiment], f"attributes.run_name = '{job.run_dir.name}'")
    return [(one.info.run_id, one.info.status) for one in found]


def test_a_run_killed_when_mlflow_had_just_made_its_run_goes_on_in_that_one(orphan: Job) -> None:
    ((made, state),) = in_mlflow(orphan)
    assert state == "RUNNING"
    with replace(orphan, resumed=True).tracked() as tracker:
        assert tracker.run_id == tracked_id(orphan.run_dir) == made
    assert in_mlflow(orphan) == [(made, "FINISHED")]


def test_a_run_killed_when_mlflow_had_just_made_its_run_is_ended_when_it_is_left(orphan: Job) -> None:
    known = tracked_id(orphan.run_dir)
    assert known is not None
    Tracker(orphan.workspace.root, orphan.run_dir / OUTBOX).mark_killed(known)
    assert [state for _, state in in_mlflow(orphan)] == ["KILLED"]


def test_a_run_whose_begin_waits_goes_on_without_a_second_one(
    workspace: Workspace, data: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)
    later = PRESET.model_copy(update={"train": PRESET.train.model_copy(update={"tracking": "later"})})
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        job = Job.start(later, data, workspace, Console(quiet=True))
        for one in (job, replace(job, resumed=True)):
            with one.tracked():
                pass
    kinds = [entry.kind for entry in Outbox(job.run_dir / OUTBOX).waiting()]
    assert kinds == ["begin", "params", "status", "status", "status"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    send_waiting(workspace)
    assert [state for _, state in in_mlflow(job)] == ["FINISHED"]
