"""The records of a study: its JSON summary, a figure and MLflow runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctr.evaluation.baselines import optimal_lift_share
from ctr.evaluation.metrics import auc
from ctr.evaluation.slices import FEWEST_ROWS, Slice, slices
from ctr.reporting.figures import save_png
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.run_figures import ranker_forest
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.evaluate import Scored, scored
from pipelines.json_text import json_text
from pipelines.revision import git_revision, source_hash
from pipelines.study.study import Plan, Study
from pipelines.study.tables import study_tables
from pipelines.study.verdicts import ALIKE, Ranker, Verdict, conventions
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class StudyResult:
    """A study whose rankers were compared.

    Args:
        study: as it was declared.
        plans: its variants.
        feature_set: whose rows all rankers scored.
        split: which of them.
        reference: the ranker that differences are taken from.
        rankers: scores by name.
        verdicts: by name, best first.
        optimum: true probabilities of the rows [N], where the log is simulated.
        trained_at: commits that trials were trained at.
        command: that ran it.
    """

    study: Study
    plans: Sequence[Plan]
    feature_set: FeatureSet
    split: SplitName
    reference: str
    rankers: Mapping[str, Ranker]
    verdicts: Mapping[str, Verdict]
    optimum: np.ndarray | None
    trained_at: Sequence[str]
    command: str = ""


def summary_of(result: StudyResult) -> dict[str, Any]:
    """The JSON summary: how the rankers were compared, and the result of each."""
    base = scored(result.feature_set, result.split, next(iter(result.rankers.values())).evaluated[0])
    best = auc(base.labels, result.optimum, base.weights) if result.optimum is not None else None
    parts = slices(result.feature_set, result.split)
    results = []
    for name, found in result.verdicts.items():
        entry: dict[str, Any] = {"name": name, **found.record()}
        if best is not None:
            entry |= _lift_share(entry["auc"], best)
        entry["slices"] = _slice_aucs(parts, base, result.rankers[name].evaluated, result.optimum)
        results.append(entry)
    return {
        "status": "done",
        "exit_code": 0,
        "study": result.study.name,
        "data": str(result.study.data),
        "feature_set": str(result.feature_set.path),
        "split": result.split,
        "seeds": result.study.seeds,
        "reference": result.reference,
        "calibration": ALIKE,
        "conventions": conventions(result.verdicts),
        "optimum_auc": best,
        "git_revision": git_revision(),
        "results": results,
        "source_hash": source_hash(),
        "trained_at": list(result.trained_at),
        "command": result.command,
    }


def page_of(result: StudyResult) -> str:
    """The tables of a study in markdown, with what they were made by."""
    train, valid, judged = (result.feature_set.manifest.windows[one].rows for one in ("train", "valid", result.split))
    rows = f"{train:,} training and {valid:,} validation rows, compared on {judged:,} {result.split} rows"
    made = f"`{result.command}`, trained at git {', '.join(result.trained_at)}." if result.command else ""
    tables = [table.as_markdown() for table in study_tables(result.verdicts, result.reference)]
    head = [f"## {result.study.name}", f"{result.study.data}: {rows}. {made}".rstrip()]
    return "\n\n".join([*head, *(table.rstrip() for table in tables), " ".join(conventions(result.verdicts))]) + "\n"


def record_study(result: StudyResult, summary: Mapping[str, Any], folder: Path, workspace: Workspace) -> None:
    """Write `summary.json`, `summary.md` and `forest.png` into the study's folder; one MLflow run, a child a ranker."""
    write_text(folder / "summary.json", json_text(summary, indent=2))
    write_text(folder / "summary.md", page_of(result))
    intervals = {name: found.rows.auc.interval() for name, found in result.verdicts.items()}
    figure = ranker_forest(intervals, f"{result.split} AUC", result.reference)
    save_png(figure, folder / "forest.png")
    presets = {variant.name: variant.preset for variant in result.plans}
    tracker = Tracker(workspace.root)
    experiment = f"quadrank-{result.plans[0].contract.name}"
    tags = {"git_revision": git_revision(), "study": result.study.name}
    with tracker.run(experiment, f"study-{result.study.name}", tags, result.study.model_dump(mode="json")):
        parent = tracker.run_id
        tracker.log_figure(figure, "forest.png")
        tracker.log_file(folder / "summary.json")
        tracker.log_file(folder / "summary.md")
        tracker.log_metrics({f"{name}.auc": found.metrics["auc"] for name, found in result.verdicts.items()})
    for name, found in result.verdicts.items():
        params = presets[name].model_dump(mode="json") if name in presets else {}
        with tracker.run(experiment, name, tags, params, parent_run=parent):
            values = found.metrics | found.facts
            tracker.log_metrics({f"{result.split}.{key}": value for key, value in values.items()})


def _slice_aucs(
    parts: Sequence[Slice], base: Scored, scores_SN: np.ndarray, optimum_N: np.ndarray | None
) -> list[dict[str, Any]]:
    """Mean AUC over seeds of each slice that has an AUC."""
    found = []
    for part in parts:
        labels, weights = base.labels[part.rows_N], base.weights[part.rows_N]
        if len(labels) < FEWEST_ROWS or len(np.unique(labels[weights > 0])) < 2:
            continue
        value = float(np.mean([auc(labels, scores_N[part.rows_N], weights) for scores_N in scores_SN]))
        entry: dict[str, Any] = {"dimension": part.dimension, "name": part.name, "rows": len(labels), "auc": value}
        if optimum_N is not None:
            entry |= _lift_share(value, auc(labels, optimum_N[part.rows_N], weights))
        found.append(entry)
    return found


def _lift_share(value: float, best: float) -> dict[str, float]:
    """As an entry of the summary; none where the optimum itself is not above chance, as in a small slice."""
    share = optimal_lift_share(value, best)
    return {} if math.isnan(share) else {"optimal_lift_share": share}
