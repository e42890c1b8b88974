"""`stress`: the AUC drop of a finished run's model with corrupted vectors, as a table, a figure and a record."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ctr.data.columns import column
from ctr.diagnosis.vector_stress import StressConfig, StressResult, stress_model
from ctr.evaluation.bootstrap import LEVEL
from ctr.evaluation.significance import resolved
from ctr.reporting.figures import save_png
from ctr.reporting.run_figures import stress_plot
from features.errors import ConfigError
from features.store.atomic import write_text
from pipelines.cells import signed
from pipelines.job.load_run import load_run
from pipelines.job.tracked import keep_with_run
from pipelines.json_text import json_text
from pipelines.workspace import Workspace


def stress_run(run_id: str, config: StressConfig, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Stress the model of a run on its evaluation rows; writes `stress.json` and `stress.png`, and logs both.

    Raises:
        ConfigError: no such run, or its feature set has no vectors.
    """
    run_dir, model, feature_set = load_run(run_id, workspace)
    if not feature_set.schema.vectors:
        raise ConfigError(
            f"{feature_set.path}: no vector sets, so there is nothing to stress. Declare `embeddings` in the contract."
        )
    found = stress_model(model, feature_set, feature_set.judged_by, config)
    users = len(np.unique(column(feature_set, found.split, "user")))
    console.print(table_of(f"{run_dir.name}: vectors under stress, {found.split} rows", found, users))
    console.print(_verdict(found, config))
    record = asdict(found) | {
        "stresses": [asdict(result) | {"auc_drop": result.auc_drop._asdict()} for result in found.stresses]
    }
    write_text(run_dir / "stress.json", json_text(record, indent=2))
    figure = stress_plot(found)
    save_png(figure, run_dir / "stress.png")
    keep_with_run(run_dir, workspace, run_dir / "stress.json", "run", {"stress.png": figure})
    return {"status": "done", "exit_code": 0, "run_id": run_dir.name, **record}


def table_of(title: str, found: StressResult, users: int) -> Table:
    """The stresses with their AUC drops; those of rows of one user, whom no resample varies, without intervals."""
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.caption = (
        "Intervals: 95 %, from resampling users with all of their rows; each is for its own AUC drop alone. "
        f"*: p < {LEVEL} after Holm's correction for the {len(found.stresses)} stresses of this table."
        if users > 1
        else "All rows are one user's: no interval or star says how far a drop is from chance."
    )
    table.add_column("stress")
    for heading in ("AUC", "AUC drop", "log loss", "mean |change| of scores"):
        table.add_column(heading, justify="right")
    table.add_row("no stress", f"{found.auc:.4f}", "", f"{found.log_loss:.4f}", "")
    before = ""
    stars = resolved([result.auc_drop for result in found.stresses])
    for result, star in zip(found.stresses, stars, strict=True):
        if result.sets != before:
            table.add_section()
        before = result.sets
        sets = "all sets" if result.sets == "all" else result.sets
        table.add_row(
            f"{sets}: {result.label}",
            f"{result.auc:.4f}",
            signed(result.auc_drop, star) if users > 1 else f"{result.auc_drop.value:+.4f}",
            f"{result.log_loss:.4f}",
            f"{result.mean_abs_change:.4f}",
        )
    return table


def _verdict(found: StressResult, config: StressConfig) -> str:
    if not found.ignored:
        return "  the model uses every vector set: without it, or with another item's, its scores change"
    return (
        f"  ignored by the model: {', '.join(found.ignored)}. Removing or swapping all its vectors changes AUC, and a "
        f"probability on average, by less than {config.ignored_below:g}"
    )
