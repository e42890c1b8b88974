"""`report`: one HTML page on a training run, kept with its MLflow run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.diagnosis.permutation_importance import permutation_importance
from ctr.evaluation.slices import slice_metrics
from features.store.atomic import write_text
from pipelines.job.evaluate import score_split
from pipelines.job.load_run import load_run
from pipelines.job.tracked import keep_with_run
from pipelines.report import sections as section
from pipelines.report.model import model_sections
from pipelines.report.page import page
from pipelines.report.record import RunRecord
from pipelines.workspace import Workspace

REPORT = "report.html"


def report_run(run_id: str, out: Path | None, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Score the evaluation rows of a finished run again, and write the results as one self-contained HTML page.

    Args:
        run_id: or `latest`.
        out: the file to write; `report.html` in the run folder without one.
        workspace: where the run is.
        console: where messages are printed.

    Raises:
        ConfigError: no such run, one that was never evaluated, or its feature set was built from another
            contract.
        DataError: its feature set is gone.
    """
    started = time.monotonic()
    run_dir, model, feature_set = load_run(run_id, workspace)
    record = RunRecord.read(run_dir)
    split = feature_set.judged_by
    judged = score_split(model, feature_set, split)
    importances = permutation_importance(model, feature_set, split)
    sections = [
        section.the_run(record, feature_set, sum(weights.numel() for weights in model.parameters())),
        section.metrics_and_controls(record, split),
        section.learning(record),
        section.ranking(judged),
        section.calibration(judged),
        section.score_distribution(judged),
        section.slices(slice_metrics(feature_set, split, judged.scores), record.metrics[split]["auc"]),
        section.importance(importances),
        *model_sections(model, feature_set, run_dir),
        section.settings(record.config),
    ]
    path = out or run_dir / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(f"{feature_set.contract.name}: run {run_dir.name}", sections))
    console.print(f"report {path}: {path.stat().st_size / 2**10:.0f} KiB, {len(sections)} sections")
    keep_with_run(run_dir, workspace, path, "report")
    return {
        "status": "done",
        "exit_code": 0,
        "run_id": run_dir.name,
        "report": str(path),
        "importance": {
            f"{found.side}.{found.name}": {"drop": found.drop.value, "low": found.drop.low, "high": found.drop.high}
            for found in importances
        },
        "seconds": round(time.monotonic() - started, 2),
    }
