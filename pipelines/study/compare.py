"""`compare` and `ablate`: train the variants of a study, compare all rankers on the same rows, record the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ctr.evaluation.baselines import optimum_scores, popularity_scores
from ctr.evaluation.boosting import counters_control, tabular_control
from ctr.export.latency import rank_latency
from features.errors import ConfigError, QuadRankError
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.build import build, describe
from pipelines.job.evaluate import require_both_labels
from pipelines.job.fitting import require_fit
from pipelines.locks import locked
from pipelines.source import Source
from pipelines.study.peers import peer_scores, require_peers
from pipelines.study.record import StudyResult, record_study, summary_of
from pipelines.study.study import Control, Plan, Study, plan
from pipelines.study.tables import study_tables
from pipelines.study.trials import Trial, require_same_rows, run_trials
from pipelines.study.verdicts import Ranker, conventions, verdicts
from pipelines.workspace import LOCK, Workspace

Scores = dict[SplitName, np.ndarray]

# Probabilities by split, [seeds, rows]. Popularity has no seed: one row, however many seeds the study has.
BASELINES: dict[Control, Callable[[FeatureSet, Sequence[SplitName], int], Scores]] = {
    "popularity": lambda feature_set, splits, _: {
        split: popularity_scores(feature_set, split)[None] for split in splits
    },
    "counters": counters_control,
    "boosting": tabular_control,
}


@dataclass(frozen=True)
class Comparison:
    """A study, with where and how it runs.

    Args:
        study: what is compared.
        train: file of training defaults; the presets' own settings go before them.
        root: of the raw files, instead of the data contract's.
        workspace: where feature sets, trials and results are.
        workers: trainings at a time.
        console: where messages are printed.
        split: whose rows are compared on; default: test, or valid where test has no labels.
        command: that runs it, for the record.
        data: settings over those of the data contract.
        as_of: last day that is read; default the day of the newest event.
        window: days whose rows are held; default all.
    """

    study: Study
    train: Path
    root: str | None
    workspace: Workspace
    workers: int
    console: Console
    split: SplitName | None = None
    command: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    as_of: str | None = None
    window: int | None = None

    @property
    def folder(self) -> Path:
        """`comparisons/<study>/` of the workspace: trials and results."""
        return self.workspace.comparisons / self.study.name


def run_comparison(comparison: Comparison) -> dict[str, Any]:
    """Train the missing trials of a study, compare all rankers on the same rows, and record the result.

    Every ranker is calibrated alike, on the validation rows. Writes `summary.json`, `summary.md` and `forest.png` into
    `comparisons/<study>/`, and one MLflow run with a child a variant; returns the JSON summary.

    Raises:
        QuadRankError: a file of the study cannot be used, a variant's rows differ or its settings do not fit them, the
            split has no labels or one alone, or a trial failed.
        LockError: another process works on the study.
    """
    with locked(comparison.folder / LOCK, "another process works on this study"):
        return _compared(comparison)


def _compared(comparison: Comparison) -> dict[str, Any]:
    study, console = comparison.study, comparison.console
    plans = plan(study, comparison.train, comparison.root, comparison.data)
    require_peers(study.peers, plans[0].contract, comparison.folder)
    feature_sets = _feature_sets(plans, comparison)
    first = feature_sets[0]
    split = _compared_split(first, comparison.split)
    require_both_labels(first, split)
    for variant, feature_set in zip(plans, feature_sets, strict=True):
        _require_fit(variant, feature_set)
    trials = run_trials(plans, feature_sets, study.seeds, comparison.folder, comparison.workers, say=console.print)
    splits: list[SplitName] = ["valid", split] if split != "valid" else ["valid"]
    rankers = {
        variant.name: _variant(variant, trials[variant.name], feature_set, split)
        for variant, feature_set in zip(plans, feature_sets, strict=True)
    }
    rankers |= _opponents(comparison, first, splits)
    reference = study.reference or plans[0].name
    result = StudyResult(
        study=study,
        plans=plans,
        feature_set=first,
        split=split,
        reference=reference,
        rankers=rankers,
        verdicts=verdicts(first, split, rankers, reference),
        optimum=optimum_scores(first, split),
        trained_at=trained_at(trials),
        command=comparison.command,
    )
    summary = summary_of(result)
    console.print(f"{study.name}, {split} window, {study.seeds} seeds")
    for table in study_tables(result.verdicts, reference):
        console.print(table.on_terminal())
    console.print(" ".join(conventions(result.verdicts)), style="dim")
    console.print(f"trained at git {', '.join(result.trained_at)}, sources {summary['source_hash']}")
    record_study(result, summary, comparison.folder, comparison.workspace)
    console.print(f"written to {comparison.folder}: summary.json, summary.md and forest.png")
    return summary


def trained_at(trials: Mapping[str, Sequence[Trial]]) -> list[str]:
    """The commits that the trials of a study were trained at; the sources of each were the same."""
    return sorted({trial.git_revision for found in trials.values() for trial in found})


def _feature_sets(plans: Sequence[Plan], comparison: Comparison) -> list[FeatureSet]:
    """Of each variant, built or reused. Raises DataError where their rows differ."""
    found = []
    for variant in plans:
        result = build(Source(variant.contract, comparison.as_of, comparison.window), comparison.workspace)
        comparison.console.print(f"{variant.name}: {describe(result)}", style="dim")
        found.append(result.feature_set)
    require_same_rows(found)
    return found


def _require_fit(variant: Plan, feature_set: FeatureSet) -> None:
    """Refuse before the first training what the last one would refuse. Raises QuadRankError naming the variant."""
    try:
        require_fit(variant.preset, feature_set)
    except QuadRankError as error:
        raise type(error)(f"variants.{variant.name}: {error}") from None


def _compared_split(feature_set: FeatureSet, asked: SplitName | None) -> SplitName:
    if asked is None:
        return feature_set.judged_by
    if not feature_set.manifest.windows[asked].labelled:
        raise ConfigError(f"--split {asked}: the {asked} rows of {feature_set.path} have no labels. Use --split valid.")
    return asked


def _variant(variant: Plan, trials: Sequence[Trial], feature_set: FeatureSet, split: SplitName) -> Ranker:
    """A trained variant: its scores by seed, and medians over seeds of the facts that its trainings recorded."""
    names = ("parameters", "rows_per_second", "seconds", "epochs", "valid_ece_before", "valid_ece_after")
    known = [name for name in names if all(name in trial.facts for trial in trials)]
    facts = {name: float(np.median([trial.facts[name] for trial in trials])) for name in known}
    return Ranker(
        evaluated=np.stack([trial.scores[split] for trial in trials]),
        valid=np.stack([trial.scores["valid"] for trial in trials]),
        facts=facts | {"rank_ms": rank_latency(variant.preset.model, trials[0].folder, feature_set)},
        why=variant.why,
    )


def _opponents(comparison: Comparison, feature_set: FeatureSet, splits: Sequence[SplitName]) -> dict[str, Ranker]:
    """The baselines and peers of a study. `splits`: valid, and the compared one, which comes last."""
    study, console = comparison.study, comparison.console
    found = {}
    for name in study.controls:
        console.print(f"baseline: {name}")
        scores = BASELINES[name](feature_set, splits, study.seeds)
        found[str(name)] = Ranker(scores[splits[-1]], scores["valid"])
    for peer in study.peers:
        console.print(f"peer: {peer}, {study.seeds} seeds in an environment of its own")
        scores, facts = peer_scores(peer, feature_set, splits, study.seeds, comparison.folder)
        found[str(peer)] = Ranker(scores[splits[-1]], scores["valid"], facts)
    return found
