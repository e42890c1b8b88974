"""What is made of a finished run, kept with the MLflow run that it was tracked in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import OUTBOX, Outbox
from pipelines.workspace import TRACKED, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tracked_id(run_dir: Path) -> str | None:
    """The id of the MLflow run that a run was tracked in; None where it was not tracked.

    It is `later-…` while MLflow does not know the run yet, or whoever began it was killed before it was told its id.
    """
    record = run_dir / TRACKED
    if not record.is_file():
        return None
    return Outbox(run_dir / OUTBOX).known().run(record.read_text(encoding="utf-8").strip())


def keep_with_run(
    run_dir: Path, workspace: Workspace, file: Path, folder: str, figures: Mapping[str, Figure] | None = None
) -> None:
    """Log a file and figures to the MLflow run that a run was tracked in; do nothing where it was not tracked.

    Args:
        run_dir: the run's folder.
        workspace: whose MLflow store holds the run.
        file: copied into `folder` of the run's artifacts.
        folder: of the artifacts, e.g. `report`.
        figures: by file name, e.g. `stress.png`; they go to `plots`.

    Raises:
        ConfigError: the MLflow store does not know the run.
    """
    run_id = tracked_id(run_dir)
    if run_id is None:
        return
    tracker = Tracker(workspace.root, run_dir / OUTBOX, begin="later")
    with tracker.resume(run_id):
        for name, figure in (figures or {}).items():
            tracker.log_figure(figure, name)
        tracker.log_file(file, folder)
