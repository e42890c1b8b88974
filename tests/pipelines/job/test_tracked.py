"""Runs whose process was killed when MLflow had just begun them, or was away: they are found again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.reporting.entries import BeginRun, Known
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import OUTBOX, Outbox
from features.store.feature_set import FeatureSet
from pipelines.job.tracked import tracked_id
from pipelines.job.train import Job
from pipelines.operate.waiting import send_waiting
from pipelines.workspace import Workspace
from tests.ctr.reporting.mlflow_server import free_port
from tests.toy import toy_feature_set

PRESET = Preset(model=ModelConfig(), train=TrainConfig(batch_size=100))


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
    Tracker(orphan.workspace.root, orphan.run_dir / OUTBOX).end_if_running(known)
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
