"""`compare` and `ablate`: a study trained, judged on the same rows with intervals, told as a table, plot and record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ctr.evaluation.baselines import optimal_lift_share, optimum_scores, popularity_scores
from ctr.evaluation.boosting import counters_control, tabular_control
from ctr.evaluation.metrics import auc
from ctr.evaluation.slices import FEWEST_ROWS, Slice, slices
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.study_figures import forest
from features.errors import ConfigError
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.build import build, describe
from pipelines.job.evaluate import Scored, scored
from pipelines.revision import git_revision, source_hash
from pipelines.study.judging import ALIKE, Judged, RankerScores, conventions, judge, study_table
from pipelines.study.latency import rank_latency
from pipelines.study.peers import peer_scores, require_peers
from pipelines.study.study import Control, Plan, Study, plan
from pipelines.study.trials import Trial, require_same_rows, run_trials
from pipelines.workspace import Workspace

Scores = dict[SplitName, np.ndarray]

# Probabilities by split, [seeds, rows]; popularity has nothing that is drawn, hence one row whatever the seeds.
CONTROLS: dict[Control, Callable[[FeatureSet, Sequence[SplitName], int], Scores]] = {
    "popularity": lambda feature_set, splits, _: {one: popularity_scores(feature_set, one)[None] for one in splits},
    "counters": counters_control,
    "boosting": tabular_control,
}


def run_study(
    study: Study,
    train_defaults: Path,
    root: str | None,
    workspace: Workspace,
    workers: int,
    console: Console,
    split: SplitName | None = None,
) -> dict[str, Any]:
    """Train what is missing of a study, judge everything on the same rows, and write it down.

    Every ranker is calibrated alike, on the validation rows. Writes `comparisons/<study>/summary.json`, `forest.png`
    and one MLflow run with a child a variant.

    Args:
        study: what is compared.
        train_defaults: training settings below the presets'.
        root: of the raw files, instead of the data contract's.
        workspace: where feature sets, trials and results lie.
        workers: trainings at a time.
        console: where to say it.
        split: whose rows are judged; default: test, or valid where test has no labels.

    Raises:
        QuadRankError: a file of the study cannot be used, a variant's rows differ, the split has no labels, or a trial
            failed.
    """
    plans = plan(study, train_defaults, root)
    require_peers(study.peers, plans[0].contract, workspace.root / "comparisons" / study.name)
    feature_sets = []
    for one in plans:
        result = build(one.contract, workspace)
        console.print(f"{one.name}: {describe(result)}", style="dim")
        feature_sets.append(result.feature_set)
    require_same_rows(feature_sets)
    first = feature_sets[0]
    split = _judged_split(first, split)
    folder = workspace.root / "comparisons" / study.name
    trials = run_trials(plans, feature_sets, study.seeds, folder, workers, say=console.print)
    facts = {p.name: _facts(p, trials[p.name], fs) for p, fs in zip(plans, feature_sets, strict=True)}
    needed: list[SplitName] = ["valid", split] if split != "valid" else ["valid"]
    scores: dict[str, Scores] = {
        p.name: {one: np.stack([trial.scores[one] for trial in trials[p.name]]) for one in needed} for p in plans
    }
    for name in study.controls:
        console.print(f"control: {name}")
        scores[name] = CONTROLS[name](first, needed, study.seeds)
    for peer in study.peers:
        console.print(f"peer: {peer}, {study.seeds} seeds in an environment of its own")
        scores[peer], facts[peer] = peer_scores(peer, first, needed, study.seeds, folder)
    optimum = optimum_scores(first, split)
    reference = study.reference or plans[0].name
    rankers = {name: RankerScores(found[split], found["valid"]) for name, found in scores.items()}
    judged = judge(first, split, rankers, reference, facts, {p.name: p.why for p in plans})
    console.print(study_table(f"{study.name}, {split} window, {study.seeds} seeds", judged, reference))
    payload = _payload(study, judged, reference, first, split, rankers, optimum)
    payload |= {"source_hash": source_hash(), "trained_at": trained_at(trials)}
    console.print(f"trained at git {', '.join(payload['trained_at'])}, sources {payload['source_hash']}")
    _record(payload, judged, reference, folder, study, plans, workspace)
    console.print(f"written to {folder}/summary.json and forest.png")
    return payload


def trained_at(trials: Mapping[str, Sequence[Trial]]) -> list[str]:
    """The commits that the trials of a study were trained at; the sources of each were the same."""
    return sorted({trial.git_revision for found in trials.values() for trial in found})


def _judged_split(feature_set: FeatureSet, asked: SplitName | None) -> SplitName:
    if asked is None:
        return feature_set.judged_by
    if not feature_set.manifest.windows[asked].labelled:
        raise ConfigError(
            f"--split {asked}: the {asked} rows of {feature_set.path} have no labels. Take --split valid."
        )
    return asked


def _facts(one: Plan, trials: list[Trial], feature_set: FeatureSet) -> dict[str, float]:
    names = ("parameters", "rows_per_second", "seconds", "epochs", "valid_ece_before", "valid_ece_after")
    known = [name for name in names if all(name in trial.facts for trial in trials)]
    facts = {name: float(np.median([trial.facts[name] for trial in trials])) for name in known}
    return facts | {"rank_ms": rank_latency(one.preset.model, trials[0].folder, feature_set)}


def _payload(
    study: Study,
    judged: Mapping[str, Judged],
    reference: str,
    feature_set: FeatureSet,
    split: SplitName,
    rankers: Mapping[str, RankerScores],
    optimum: np.ndarray | None,
) -> dict[str, Any]:
    results = []
    base = scored(feature_set, split, next(iter(rankers.values())).judged[0])
    best = auc(base.labels, optimum, base.weights) if optimum is not None else None
    parts = slices(feature_set, split)
    for name, found in judged.items():
        entry: dict[str, Any] = {"name": name, **found.record()}
        if best is not None:
            entry["optimal_lift_share"] = optimal_lift_share(entry["auc"], best)
        entry["slices"] = _slice_aucs(parts, base, rankers[name].judged, optimum)
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
        "calibration": ALIKE,
        "conventions": conventions(judged),
        "optimum_auc": best,
        "git_revision": git_revision(),
        "results": results,
    }


def _slice_aucs(
    parts: Sequence[Slice], base: Scored, scores_SN: np.ndarray, optimum_N: np.ndarray | None
) -> list[dict[str, Any]]:
    """Mean AUC over seeds of each slice that has one."""
    found = []
    for one in parts:
        labels, weights = base.labels[one.rows_N], base.weights[one.rows_N]
        if len(labels) < FEWEST_ROWS or len(np.unique(labels[weights > 0])) < 2:
            continue
        value = float(np.mean([auc(labels, scores_N[one.rows_N], weights) for scores_N in scores_SN]))
        entry = {"dimension": one.dimension, "name": one.name, "rows": len(labels), "auc": value}
        if optimum_N is not None:
            entry["optimal_lift_share"] = optimal_lift_share(value, auc(labels, optimum_N[one.rows_N], weights))
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
    figure = forest(
        {name: found.auc.interval() for name, found in judged.items()}, f"{payload['split']} AUC", reference
    )
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
            tracker.log_metrics(
                {f"{payload['split']}.{key}": value for key, value in (found.metrics | found.facts).items()}
            )
