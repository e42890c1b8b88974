"""Runs in MLflow of processes that were killed between their last file and their end are ended by the next training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.job import tracked
from pipelines.job.tracked import end_left_open
from pipelines.workspace import Workspace, run_lock

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
