"""Runs whose process was killed: in MLflow they look alive, until they are ended here or gone on with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import OUTBOX
from features.errors import LockError
from pipelines.locks import Holder
from pipelines.operate.uses import is_held
from pipelines.workspace import LOCK, METRICS, TRACKED, Workspace, run_lock


def left_open(workspace: Workspace) -> list[Path]:
    """Folders of tracked runs whose process is gone and has not given back the lock of its run, oldest first."""
    tracked = sorted(path.parent for path in workspace.runs.glob(f"*/{TRACKED}"))
    return [run for run in tracked if Holder.of(run / LOCK) is not None and not is_held(run / LOCK)]


def end_left_open(workspace: Workspace) -> list[Path]:
    """End the MLflow runs of `left_open`: FINISHED where the run is finished, else KILLED; returns their folders.

    A run that is gone on with afterwards is opened again. Where MLflow is away, the end waits in the run's outbox.
    """
    ended = []
    for run in left_open(workspace):
        with suppress(LockError), run_lock(run):  # which fails where a process has just begun to work in it
            run_id = (run / TRACKED).read_text(encoding="utf-8").strip()
            tracker = Tracker(workspace.root, run / OUTBOX)
            tracker.end_if_running(run_id, "FINISHED" if (run / METRICS).is_file() else "KILLED")
            ended.append(run)
    return ended
