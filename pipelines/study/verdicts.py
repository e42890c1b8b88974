"""Rankers compared on the same rows: calibrated alike, differences paired by user and corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.bootstrap import LEVEL
from ctr.evaluation.significance import Difference, SeededAuc, holm, seeded_aucs, seeded_list_aucs
from ctr.training.calibrate import Method, cross_fitted, recalibrated
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.evaluate import Scored, scored
from pipelines.job.summary import Metrics

ALIKE: Method = "platt"  # calibration of every ranker of a study, on top of its own
PROBABILITIES = ("log_loss", "normalized_entropy", "calibration_ratio", "ece")


@dataclass(frozen=True)
class Ranker:
    """One ranker of a study: its probabilities of each seed.

    Args:
        evaluated: of the rows that all rankers are compared on, [S, N].
        valid: of the validation rows, [S, V]: it is calibrated on them. None if they are unknown: the ranker is then
            compared uncalibrated, and marked.
        facts: parameters, rows_per_second and rank_ms, if it was trained here.
        why: the purpose of the ranker.
    """

    evaluated: np.ndarray
    valid: np.ndarray | None
    facts: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """One ranker's AUC, of all rows or within requests, beside the reference's.

    Args:
        auc: of each seed and resample.
        difference: its mean AUC minus the reference's; None for the reference itself.
        p_adjusted: `difference.p`, adjusted for all differences of the study in this metric.
    """

    auc: SeededAuc
    difference: Difference | None
    p_adjusted: float | None

    @property
    def resolved(self) -> bool:
        """Whether the difference is significant, corrected for all comparisons of the study."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL

    def record(self, name: str, prefix: str = "") -> dict[str, Any]:
        """As JSON-ready entries; `name` is the metric's, `prefix` begins the entries of its difference."""
        own, apart = self.auc.interval(), self.difference or Difference(0.0, 0.0, 0.0, 1.0)
        return {
            name: own.value,
            f"{name}_low": own.low,
            f"{name}_high": own.high,
            f"{name}_by_seed": [round(float(value), 6) for value in self.auc.by_seed],
            f"{prefix}difference": apart.value,
            f"{prefix}difference_low": apart.low,
            f"{prefix}difference_high": apart.high,
            f"{prefix}p": apart.p,
            f"{prefix}p_adjusted": 1.0 if self.p_adjusted is None else self.p_adjusted,
            f"{prefix}resolved": self.resolved,
        }


def judged(aucs: Mapping[str, SeededAuc], reference: str) -> dict[str, Judged]:
    """Each ranker beside the reference, with p-values adjusted for the number of differences."""
    differences = {name: found.minus(aucs[reference]) for name, found in aucs.items() if name != reference}
    adjusted = holm({name: difference.p for name, difference in differences.items()})
    return {name: Judged(found, differences.get(name), adjusted.get(name)) for name, found in aucs.items()}


@dataclass(frozen=True)
class Verdict:
    """The result of one ranker in a study.

    Args:
        rows: AUC of all rows.
        lists: AUC within requests; None where the log names none, or none has both labels.
        metrics: means over seeds. Ranking metrics use the scores as they are, the others the calibrated ones.
        spread: their standard deviations over seeds.
        facts, why: of the ranker.
        calibrated: whether it was calibrated like all others.
    """

    rows: Judged
    lists: Judged | None
    metrics: Metrics
    spread: Metrics
    facts: dict[str, float]
    why: str
    calibrated: bool

    def record(self) -> dict[str, Any]:
        """As JSON-ready entries."""
        return {
            **self.rows.record("auc"),
            **({} if self.lists is None else self.lists.record("list_auc", "list_")),
            "calibrated": self.calibrated,
            "metrics": self.metrics,
            "spread_over_seeds": self.spread,
            "facts": self.facts,
            "why": self.why,
        }


def verdicts(
    feature_set: FeatureSet,
    split: SplitName,
    rankers: Mapping[str, Ranker],
    reference: str,
) -> dict[str, Verdict]:
    """The result of each ranker, in order of mean AUC, best first.

    Args:
        feature_set: whose rows were scored.
        split: which of them.
        rankers: by name.
        reference: the ranker that differences are taken from.
    """
    base = scored(feature_set, split, next(iter(rankers.values())).evaluated[0])
    scores = {name: ranker.evaluated for name, ranker in rankers.items()}
    rows = judged(seeded_aucs(base.labels, scores, base.weights, clusters=base.groups), reference)
    lists: dict[str, Judged] = {}
    if base.requests is not None:
        within = seeded_list_aucs(base.labels, scores, base.requests, base.weights, clusters=base.groups)
        lists = judged(within, reference) if within else {}
    result = {}
    for name, found in rankers.items():
        calibrated = _calibrated(feature_set, split, found)
        by_seed = [
            _metrics(base, raw, raw if calibrated is None else calibrated[seed])
            for seed, raw in enumerate(found.evaluated)
        ]
        values = {key: np.array([metrics[key] for metrics in by_seed]) for key in by_seed[0]}
        result[name] = Verdict(
            rows=rows[name],
            lists=lists.get(name),
            metrics={key: float(of_seeds.mean()) for key, of_seeds in values.items()},
            spread={key: float(of_seeds.std()) for key, of_seeds in values.items()},
            facts=found.facts,
            why=found.why,
            calibrated=calibrated is not None,
        )
    return dict(sorted(result.items(), key=lambda entry: -entry[1].metrics["auc"]))


def _calibrated(feature_set: FeatureSet, split: SplitName, found: Ranker) -> np.ndarray | None:
    """Scores calibrated on the validation rows, [S, N]; if these are compared on, each user on the rows of others."""
    if found.valid is None:
        return None
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    if split != "valid":
        pairs = zip(found.valid, found.evaluated, strict=True)
        return np.stack([recalibrated(ALIKE, valid, labels, weights, evaluated) for valid, evaluated in pairs])
    users = column(feature_set, "valid", "user")
    halves = [cross_fitted(ALIKE, scores_N, labels, users, weights) for scores_N in found.evaluated]
    known = [scores_N for scores_N in halves if scores_N is not None]
    return np.stack(known) if len(known) == len(halves) else None


def _metrics(base: Scored, raw_N: np.ndarray, calibrated_N: np.ndarray) -> Metrics:
    """Ranking metrics of raw scores, since two curves for two halves mix ranks; the others of calibrated ones."""
    found = replace(base, scores=raw_N).metrics(intervals=False)
    likely = replace(base, scores=calibrated_N, requests=None).metrics(intervals=False)
    return found | {key: likely[key] for key in PROBABILITIES if key in likely}


def conventions(found: Mapping[str, Verdict]) -> list[str]:
    """How the numbers of a study were computed, a sentence each."""
    first = next(iter(found.values()))
    comparisons = sum(verdict.rows.difference is not None for verdict in found.values())
    sentences = [
        f"Intervals: 95 %, from resampling {first.rows.auc.users:,} users with all of their rows and from the variance "
        "over seeds divided by their number; each is for one number alone."
    ]
    if any(len(verdict.rows.auc.by_seed) == 1 for verdict in found.values()):
        sentences.append("The interval of a ranker with one seed leaves out the variation between trainings.")
    sentences.append(f"*: p < {LEVEL} after Holm's correction for the {comparisons} differences of a table.")
    sentences.append(
        f"Log loss, NE, ECE: every ranker is calibrated by {ALIKE}, on validation rows that it is not compared on."
    )
    return sentences
