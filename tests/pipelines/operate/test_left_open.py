"""Runs whose process was killed: the next command ends them in MLflow, and whoever goes on with one opens it again."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import OUTBOX, Outbox
from pipelines.operate.cleaning import clean
from pipelines.operate.doctor import findings_of
from pipelines.operate.left_open import end_left_open, left_open
from pipelines.workspace import LOCK, METRICS, TRACKED, Workspace, run_lock
from tests.ctr.reporting.mlflow_server import free_port
from tests.pipelines.operate.places import add_run, run_id


def holder(host: str = "") -> str:
    """What a lock says of a process that is gone."""
    return json.dumps({"host": host or socket.gethostname(), "pid": 7, "since": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path)


@pytest.fixture
def left(workspace: Workspace) -> Path:
    """A training that was killed yesterday: nobody resumed it."""
    folder = add_run(workspace, run_id(1), "a", finished=False)
    (folder / LOCK).write_text(holder())
    client = MlflowStore(workspace.root).client
    experiment = client.create_experiment("quadrank-shop", artifact_location=str(workspace.root / "files"))
    (folder / TRACKED).write_text(client.create_run(experiment, run_name=folder.name).info.run_id)
    return folder


def state(run: Path) -> str:
    client = MlflowStore(run.parents[1]).client
    return str(client.get_run((run / TRACKED).read_text()).info.status)


def test_a_training_that_was_killed_ends_as_killed_once_and_its_folder_stays(workspace: Workspace, left: Path) -> None:
    assert state(left) == "RUNNING"
    assert end_left_open(workspace) == [left]
    assert state(left) == "KILLED"
    assert end_left_open(workspace) == []
    assert (left / "checkpoint-9.safetensors").is_file()


def test_a_finished_one_that_was_only_not_ended_is_finished(workspace: Workspace, left: Path) -> None:
    (left / METRICS).write_text("{}")
    end_left_open(workspace)
    assert state(left) == "FINISHED"


def test_one_that_is_gone_on_with_is_opened_again(workspace: Workspace, left: Path) -> None:
    end_left_open(workspace)
    with run_lock(left), Tracker(workspace.root, left / OUTBOX).resume((left / TRACKED).read_text()):
        assert state(left) == "RUNNING"
        assert left_open(workspace) == []
    assert state(left) == "FINISHED"


def test_what_mlflow_does_not_know_any_more_ends_no_command(workspace: Workspace, left: Path) -> None:
    (left / TRACKED).write_text("0" * 32)
    assert end_left_open(workspace) == [left]


@pytest.mark.parametrize("text", [None, ""], ids=["never locked", "given back"])
def test_one_that_was_not_killed_is_left(workspace: Workspace, left: Path, text: str | None) -> None:
    (left / LOCK).unlink()
    if text is not None:
        (left / LOCK).write_text(text)
    assert end_left_open(workspace) == []
    assert state(left) == "RUNNING"


def test_one_of_a_process_of_another_machine_is_left_while_that_gives_signs(workspace: Workspace, left: Path) -> None:
    (left / LOCK).write_text(holder("build-3"))
    assert end_left_open(workspace) == []


def test_one_that_mlflow_never_heard_of_is_left(workspace: Workspace, left: Path) -> None:
    (left / TRACKED).unlink()
    assert end_left_open(workspace) == []


def test_where_mlflow_is_away_the_end_waits(workspace: Workspace, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert end_left_open(workspace) == [left]
    assert [(entry.kind, entry.status) for entry in Outbox(left / OUTBOX).waiting()] == [("left", "KILLED")]  # type: ignore[union-attr]


def test_doctor_names_it_with_its_mend_and_gc_ends_it(workspace: Workspace, left: Path) -> None:
    (found,) = [one for one in findings_of(workspace) if one.check == "lock"]
    assert found.text.startswith(f"{left / LOCK}: left by pid 7 on ")
    assert found.text.endswith("its MLflow run looks alive")
    assert found.mend == (
        "`quadrank gc --yes`, or the next `quadrank train` or `run`, ends it in MLflow; "
        f"`quadrank train --resume {left.name}` goes on with it"
    )
    shown = io.StringIO()
    assert clean(workspace, 1, False, Console(file=shown, width=200))["left_open"] == [left.name]
    assert f"run {left.name}, whose process was killed, looks alive in MLflow: --yes ends it" in shown.getvalue()
    assert state(left) == "RUNNING"
    assert clean(workspace, 1, True, Console(file=io.StringIO()))["left_open"] == [left.name]
    assert state(left) == "KILLED"
    assert left.is_dir()
    assert [one for one in findings_of(workspace) if one.check == "lock"] == []


def test_doctor_does_not_advise_to_go_on_with_a_finished_one(workspace: Workspace, left: Path) -> None:
    (left / METRICS).write_text("{}")
    (found,) = [one for one in findings_of(workspace) if one.check == "lock"]
    assert found.mend == "`quadrank gc --yes`, or the next `quadrank train` or `run`, ends it in MLflow"
