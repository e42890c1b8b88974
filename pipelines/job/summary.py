"""The result of a command: tables for people, one JSON object for programs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.evaluation.baselines import optimal_lift_share
from ctr.evaluation.catalog_coverage import TopLists
from ctr.evaluation.slices import SliceResult
from pipelines.cells import HEADINGS, LIST_METRICS, metric_cell, narrow_table
from pipelines.operate.clock import peak_mib

Metrics = dict[str, float]

DRAWN = "Intervals resample users with all of their rows; each is for one number alone, and for one training."
OF_A_SLICE = ("auc", "interval", "log_loss", "calibration_ratio", "ece")


@dataclass
class Summary:
    """The result of `run`, `train` and `evaluate`; field names are the stable JSON keys."""

    status: str = "done"
    exit_code: int = 0
    run_id: str | None = None
    feature_set: str | None = None
    bundle: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0
    metrics: dict[str, Metrics] = field(default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # metrics; `target_only` also names its run and day
    tasks: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    top_lists: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)  # of `run`: what each did, why, and its seconds
    gate: dict[str, Any] = field(default_factory=dict)  # of `run`: the verdict, as docs/gate.md has it
    error: str | None = None  # why it did not succeed; no key where it did

    def closed(self, started: float) -> dict[str, Any]:
        """As a JSON-ready dict, with the wall time since `started` and this process's peak memory."""
        self.seconds = round(time.monotonic() - started, 2)
        self.peak_mib = peak_mib()
        content = asdict(self)
        if self.error is None:
            del content["error"]
        return content


def control_label(name: str, values: Mapping[str, Any], run_id: str | None) -> str:
    """The name of a control in tables, with its day if another run trained it."""
    label = name.replace("_", "-")
    return label if values.get("run_id", run_id) == run_id else f"{label} of {values['day']}"


def results_tables(title: str, rows: dict[str, Metrics]) -> list[Table]:
    """Rankers (rows) by metric (columns), a cell empty where a ranker has no value; those of ranked lists apart.

    All columns at once are wider than a terminal of 80 columns, which then shows no number whole.
    """
    of_rows = [key for key in HEADINGS if key not in LIST_METRICS]
    tables = [_results_table(title, rows, of_rows)]
    if any(key in metrics for metrics in rows.values() for key in LIST_METRICS):
        tables.append(_results_table(f"{title}, within requests", rows, LIST_METRICS))
    tables[0].caption = DRAWN
    return tables


def _results_table(title: str, rows: dict[str, Metrics], keys: Sequence[str]) -> Table:
    shown = [key for key in keys if key == "interval" or any(key in metrics for metrics in rows.values())]
    table = narrow_table(title)
    table.add_column("ranker", overflow="fold")
    for key in shown:
        table.add_column(HEADINGS[key], justify="right", no_wrap=key != "interval")
    for name, metrics in rows.items():
        table.add_row(name, *(metric_cell(metrics, key) for key in shown))
    return table


def slices_table(title: str, slices: Sequence[SliceResult]) -> Table:
    """Slices (table rows) with their numbers of rows and positives, and their metrics."""
    table = narrow_table(title)
    table.caption = DRAWN
    table.add_column("slice", overflow="fold")
    for heading in ("rows", "positive", *(HEADINGS[key] for key in OF_A_SLICE)):
        table.add_column(heading, justify="right", no_wrap=heading != HEADINGS["interval"])
    before = ""
    for part in slices:
        if part.dimension != before:
            table.add_section()
        before = part.dimension
        name = part.name if part.dimension == "all" else f"{part.dimension}: {part.name}"
        cells = [metric_cell(part.metrics, key) for key in OF_A_SLICE]
        table.add_row(name, f"{part.rows:,}", f"{part.positives / part.rows:.1%}", *cells)
    return table


def lists_table(lists: TopLists) -> Table:
    """Coverage and novelty of the best rows of each user or request, beside random lists."""
    title = f"lists of the {lists.k} best ({lists.groups_cut:,} of {lists.groups:,} had more to choose from)"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("listed", "random", "all rows"):
        table.add_column(column, justify="right")
    numbers = {
        "catalogue coverage": lists.coverage,
        "Gini of exposure": lists.gini,
        "novelty (bits)": lists.novelty,
        "share of tail items": lists.tail_share,
        "share of new items": lists.new_share,
    }
    for name, measure in numbers.items():
        table.add_row(name, *(f"{value:.3f}" for value in (measure.listed, measure.random, measure.shown)))
    if lists.calibration is not None:
        table.add_row("calibration of listed rows", f"{lists.calibration:.3f}", "", "")
    return table


def print_results(console: Console, title: str, summary: Summary, split: str, model: str) -> None:
    """Print the model beside its controls on one split, and its share of the optimum's AUC lift."""
    rows = {
        model: summary.metrics[split],
        **{f"{model}: {name}": m for name, m in summary.tasks.get(split, {}).items()},
        **{control_label(name, values, summary.run_id): values for name, values in summary.controls.items()},
    }
    for table in results_tables(title, rows):
        console.print(table)
    optimum = summary.controls.get("optimum")
    if optimum:
        share = optimal_lift_share(summary.metrics[split]["auc"], optimum["auc"])
        if math.isfinite(share):  # where the optimum itself is above chance
            console.print(f"  {share:.1%} of the optimal AUC lift over 0.5 (the optimum knows the true probabilities)")
