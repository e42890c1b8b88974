"""`compare` and `ablate`: a study trained, judged on the same rows with intervals, told as a table, plot and record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ctr.boosting import counters_control, tabular_control
from ctr.controls import optimal_lift_share, optimum_scores, popularity_scores
from ctr.metrics import Interval, auc, evaluate
from ctr.plots_study import forest
from ctr.ranking_metrics import ranking_metrics
from ctr.significance import SeededAuc, seeded_aucs
from ctr.slices import FEWEST_ROWS, Slice, slices
from ctr.tracking import Tracker
from features.atomic import write_text
from features.feature_set import FeatureSet, SplitName
from pipelines.build import build, describe
from pipelines.evaluate import Scored, scored
from pipelines.latency import rank_latency
from pipelines.peers import peer_scores, require_peers
from pipelines.revision import git_revision, source_hash
from pipelines.study import Control, Plan, Study, plan
from pipelines.trials import Trial, require_same_rows, run_trials
from pipelines.workspace import Workspace

CONTROLS: dict[Control, Callable[[FeatureSet, SplitName], np.ndarray]] = {
    "popularity": popularity_scores,
    "counters": lambda feature_set, split: counters_control(feature_set, split, seed=1),
    "boosting": lambda feature_set, split: tabular_control(feature_set, split, seed=1),
}
# Of ranked lists, where rows name their request.
LISTS = {"group_auc": "list AUC", "mrr": "MRR", "ndcg_5": "nDCG@5", "ndcg_10": "nDCG@10"}
SHOWN = ("gauc_by_samples", "log_loss", "normalized_entropy", "ece")


@dataclass(frozen=True)
class Judged:
    """What a study found of one ranker.

    Args:
        auc: of each seed and resample.
        metrics: means over seeds; spread is their standard deviation.
        facts: parameters, rows_per_second, rank_ms, where it was trained here.
        why: what it is there for.
    """

    auc: SeededAuc
    metrics: dict[str, float]
    spread: dict[str, float]
    facts: dict[str, float]
    why: str


def run_study(
    study: Study,
    train_defaults: Path,
    root: str | None,
    workspace: Workspace,
    workers: int,
    console: Console,
) -> dict[str, Any]:
    """Train what is missing of a study, judge everything on the test rows, and write it down.

    Writes `comparisons/<study>/summary.json` and `forest.png`, and one MLflow run with a child a variant.

    Raises:
        QuadRankError: a file of the study cannot be used, a variant's rows differ, or a trial failed.
    """
    require_peers(study.peers, workspace.root / "comparisons" / study.name)
    plans = plan(study, train_defaults, root)
    feature_sets = []
    for one in plans:
        result = build(one.contract, workspace)
        console.print(f"{one.name}: {describe(result)}", style="dim")
        feature_sets.append(result.feature_set)
    require_same_rows(feature_sets)
    first = feature_sets[0]
    split = first.judged_by
    folder = workspace.root / "comparisons" / study.name
    trials = run_trials(plans, feature_sets, study.seeds, folder, workers, say=console.print)
    facts = {p.name: _facts(p, trials[p.name], fs) for p, fs in zip(plans, feature_sets, strict=True)}
    scores = {p.name: np.stack([trial.scores[split] for trial in trials[p.name]]) for p in plans}
    for name in study.controls:
        console.print(f"control: {name}")
        scores[name] = CONTROLS[name](first, split)[None]
    for peer in study.peers:
        console.print(f"peer: {peer}, {study.seeds} seeds in an environment of its own")
        scores[peer], facts[peer] = peer_scores(peer, first, split, study.seeds, folder)
    optimum = optimum_scores(first, split)
    judged = judge(first, split, scores, facts, {p.name: p.why for p in plans})
    reference = study.reference or plans[0].name
    console.print(study_table(f"{study.name}, {split} window, {study.seeds} seeds", judged, reference))
    payload = _payload(study, judged, reference, first, split, scores, optimum)
    payload |= {"source_hash": source_hash(), "trained_at": trained_at(trials)}
    console.print(f"trained at git {', '.join(payload['trained_at'])}, sources {payload['source_hash']}")
    _record(payload, judged, reference, folder, study, plans, workspace)
    console.print(f"written to {folder}/summary.json and forest.png")
    return payload


def trained_at(trials: Mapping[str, Sequence[Trial]]) -> list[str]:
    """The commits that the trials of a study were trained at; the sources of each were the same."""
    return sorted({trial.git_revision for found in trials.values() for trial in found})


def judge(
    feature_set: FeatureSet,
    split: SplitName,
    scores: Mapping[str, np.ndarray],
    facts: Mapping[str, dict[str, float]],
    why: Mapping[str, str],
) -> dict[str, Judged]:
    """Rankers by mean AUC, best first.

    Args:
        feature_set: whose rows were scored.
        split: which of them.
        scores: probabilities by ranker, [seeds, rows].
        facts, why: by ranker, where there are any.
    """
    base = scored(feature_set, split, next(iter(scores.values()))[0])
    aucs = seeded_aucs(base.labels, scores)
    result = {}
    for name, scores_SN in scores.items():
        by_seed = [_metrics(base, one) for one in scores_SN]
        values = {key: np.array([found[key] for found in by_seed]) for key in by_seed[0]}
        result[name] = Judged(
            auc=aucs[name],
            metrics={key: float(found.mean()) for key, found in values.items()},
            spread={key: float(found.std()) for key, found in values.items()},
            facts=facts.get(name, {}),
            why=why.get(name, ""),
        )
    return dict(sorted(result.items(), key=lambda entry: -entry[1].metrics["auc"]))


def _metrics(rows: Scored, scores_N: np.ndarray) -> dict[str, float]:
    found = evaluate(rows.labels, scores_N, rows.groups, rows.base_rate, intervals=False)
    if rows.requests is not None:
        found |= ranking_metrics(rows.labels, scores_N, rows.requests)
    return found


def study_table(title: str, judged: Mapping[str, Judged], reference: str) -> Table:
    """Rankers (rows) with AUC, its interval, the paired difference from the reference, and the other metrics."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("ranker")
    lists = [name for name in LISTS if all(name in found.metrics for found in judged.values())]
    for column in ("AUC", "95 % interval", f"against {reference}", "GAUC", "log loss", "NE", "ECE"):
        table.add_column(column, justify="right")
    for name in lists:
        table.add_column(LISTS[name], justify="right")
    for column in ("rows/s", "parameters", "rank ms"):
        table.add_column(column, justify="right")
    for name, found in judged.items():
        own = found.auc.interval()
        difference = "" if name == reference else signed(found.auc.minus(judged[reference].auc))
        numbers = [f"{found.metrics[key]:.4f}" if key in found.metrics else "" for key in SHOWN]
        numbers += [_with_interval(found.metrics, name) for name in lists]
        table.add_row(
            name.replace("_", " "),
            f"{own.value:.4f}",
            f"{own.low:.4f} – {own.high:.4f}",
            difference,
            *numbers,
            *(_shown(found.facts, key) for key in ("rows_per_second", "parameters", "rank_ms")),
        )
    return table


def signed(found: Interval) -> str:
    """A difference with its interval; a star where the interval excludes 0."""
    star = " *" if found.low > 0 or found.high < 0 else ""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}){star}"


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f} ({metrics[f'{name}_low']:.4f} – {metrics[f'{name}_high']:.4f})"


def _shown(facts: Mapping[str, float], key: str) -> str:
    value = facts.get(key)
    if value is None:
        return ""
    return f"{value:.2f}" if key == "rank_ms" else f"{value:,.0f}"


def _facts(one: Plan, trials: list[Trial], feature_set: FeatureSet) -> dict[str, float]:
    names = ("parameters", "rows_per_second", "seconds", "epochs", "valid_ece_before", "valid_ece_after")
    facts = {name: float(np.median([trial.facts[name] for trial in trials])) for name in names}
    return facts | {"rank_ms": rank_latency(one.preset.model, trials[0].folder, feature_set)}


def _payload(
    study: Study,
    judged: Mapping[str, Judged],
    reference: str,
    feature_set: FeatureSet,
    split: SplitName,
    scores: Mapping[str, np.ndarray],
    optimum: np.ndarray | None,
) -> dict[str, Any]:
    results = []
    base = scored(feature_set, split, next(iter(scores.values()))[0])
    best = auc(base.labels, optimum) if optimum is not None else None
    parts = slices(feature_set, split)
    for name, found in judged.items():
        own, difference = found.auc.interval(), found.auc.minus(judged[reference].auc)
        entry: dict[str, Any] = {
            "name": name,
            "auc": own.value,
            "auc_low": own.low,
            "auc_high": own.high,
            "auc_by_seed": [round(float(one), 6) for one in found.auc.by_seed],
            "difference": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "metrics": found.metrics,
            "spread_over_seeds": found.spread,
            "facts": found.facts,
            "why": found.why,
        }
        if best is not None:
            entry["optimal_lift_share"] = optimal_lift_share(own.value, best)
        entry["slices"] = _slice_aucs(parts, base.labels, scores[name], optimum)
        results.append(entry)
    return {
        "status": "done",
        "exit_code": 0,
        "study": study.name,
        "data": str(study.data),
        "feature_set": str(feature_set.path),
        "split": split,
        "seeds": study.seeds,
        "reference": reference,
        "optimum_auc": best,
        "git_revision": git_revision(),
        "results": results,
    }


def _slice_aucs(
    parts: Sequence[Slice], labels_N: np.ndarray, scores_SN: np.ndarray, optimum_N: np.ndarray | None
) -> list[dict[str, Any]]:
    """Mean AUC over seeds of each slice that has one."""
    found = []
    for one in parts:
        labels = labels_N[one.rows_N]
        if len(labels) < FEWEST_ROWS or labels.min() == labels.max():
            continue
        value = float(np.mean([auc(labels, scores_N[one.rows_N]) for scores_N in scores_SN]))
        entry = {"dimension": one.dimension, "name": one.name, "rows": len(labels), "auc": value}
        if optimum_N is not None:
            entry["optimal_lift_share"] = optimal_lift_share(value, auc(labels, optimum_N[one.rows_N]))
        found.append(entry)
    return found


def _record(
    payload: dict[str, Any],
    judged: Mapping[str, Judged],
    reference: str,
    folder: Path,
    study: Study,
    plans: list[Plan],
    workspace: Workspace,
) -> None:
    write_text(folder / "summary.json", json.dumps(payload, indent=2))
    figure = forest({name: found.auc.interval() for name, found in judged.items()}, "test AUC", reference)
    figure.savefig(folder / "forest.png", dpi=150)
    presets = {one.name: one.preset for one in plans}
    tracker = Tracker(workspace.root)
    experiment = f"quadrank-{plans[0].contract.name}"
    tags = {"git_revision": git_revision(), "study": study.name}
    with tracker.run(experiment, f"study-{study.name}", tags, study.model_dump(mode="json")):
        parent = tracker.run_id
        tracker.log_figure(figure, "forest.png")
        tracker.log_file(folder / "summary.json")
        tracker.log_metrics({f"{name}.auc": found.metrics["auc"] for name, found in judged.items()})
    for name, found in judged.items():
        params = presets[name].model_dump(mode="json") if name in presets else {}
        with tracker.run(experiment, name, tags, params, parent_run_id=parent):
            tracker.log_metrics({f"test.{key}": value for key, value in (found.metrics | found.facts).items()})
