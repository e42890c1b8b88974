"""Several rankers judged on the same rows: by the same users, calibrated alike, their differences corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import Interval
from ctr.evaluation.significance import LEVEL, Difference, SeededAuc, holm, seeded_aucs
from ctr.training.calibrate import Method, cross_fitted, recalibrated
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.evaluate import Scored, scored
from pipelines.job.summary import Metrics

ALIKE: Method = "platt"  # how every ranker of a study is calibrated, whatever it did by itself
# Of ranked lists, where rows name their request.
LISTS = {"group_auc": "list AUC", "mrr": "MRR", "ndcg_5": "nDCG@5", "ndcg_10": "nDCG@10"}
SHOWN = ("gauc_by_samples", "log_loss", "normalized_entropy", "ece")
PROBABILITIES = ("log_loss", "normalized_entropy", "calibration_ratio", "ece")


@dataclass(frozen=True)
class RankerScores:
    """What one ranker gave, probabilities of each seed.

    Args:
        judged: on the rows that all are judged on, [S, N].
        valid: on the validation rows, [S, V]: what it is calibrated by. None where they are not known: it is then
            judged as it is, and marked.
    """

    judged: np.ndarray
    valid: np.ndarray | None


@dataclass(frozen=True)
class Judged:
    """What a study found of one ranker.

    Args:
        auc: of each seed and resample.
        metrics: means over seeds; spread is their standard deviation. Ranks are those of the scores as they are,
            probabilities those of the calibrated ones.
        facts: parameters, rows_per_second, rank_ms, where it was trained here.
        why: what it is there for.
        calibrated: whether it was calibrated as all others.
        difference: of its mean AUC from the reference's; None of the reference itself.
        p_adjusted: `difference.p`, adjusted for all differences of the study.
    """

    auc: SeededAuc
    metrics: Metrics
    spread: Metrics
    facts: dict[str, float]
    why: str
    calibrated: bool
    difference: Difference | None
    p_adjusted: float | None

    @property
    def resolved(self) -> bool:
        """Whether its difference from the reference is more than chance, all comparisons of the study considered."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL

    def record(self) -> dict[str, Any]:
        """As JSON-ready entries."""
        own, apart = self.auc.interval(), self.difference or Difference(0.0, 0.0, 0.0, 1.0)
        return {
            "auc": own.value,
            "auc_low": own.low,
            "auc_high": own.high,
            "auc_by_seed": [round(float(one), 6) for one in self.auc.by_seed],
            "difference": apart.value,
            "difference_low": apart.low,
            "difference_high": apart.high,
            "p": apart.p,
            "p_adjusted": 1.0 if self.p_adjusted is None else self.p_adjusted,
            "resolved": self.resolved,
            "calibrated": self.calibrated,
            "metrics": self.metrics,
            "spread_over_seeds": self.spread,
            "facts": self.facts,
            "why": self.why,
        }


def judge(
    feature_set: FeatureSet,
    split: SplitName,
    rankers: Mapping[str, RankerScores],
    reference: str,
    facts: Mapping[str, dict[str, float]],
    why: Mapping[str, str],
) -> dict[str, Judged]:
    """Rankers by mean AUC, best first.

    Args:
        feature_set: whose rows were scored.
        split: which of them.
        rankers: scores by ranker.
        reference: the ranker that differences are taken from.
        facts, why: by ranker, where there are any.
    """
    base = scored(feature_set, split, next(iter(rankers.values())).judged[0])
    scores = {name: one.judged for name, one in rankers.items()}
    aucs = seeded_aucs(base.labels, scores, base.weights, clusters=base.groups)
    differences = {name: found.minus(aucs[reference]) for name, found in aucs.items() if name != reference}
    adjusted = holm({name: one.p for name, one in differences.items()})
    result = {}
    for name, found in rankers.items():
        calibrated = _calibrated(feature_set, split, found)
        by_seed = [
            _metrics(base, raw, raw if calibrated is None else calibrated[seed])
            for seed, raw in enumerate(found.judged)
        ]
        values = {key: np.array([metrics[key] for metrics in by_seed]) for key in by_seed[0]}
        result[name] = Judged(
            auc=aucs[name],
            metrics={key: float(one.mean()) for key, one in values.items()},
            spread={key: float(one.std()) for key, one in values.items()},
            facts=facts.get(name, {}),
            why=why.get(name, ""),
            calibrated=calibrated is not None,
            difference=differences.get(name),
            p_adjusted=adjusted.get(name),
        )
    return dict(sorted(result.items(), key=lambda entry: -entry[1].metrics["auc"]))


def _calibrated(feature_set: FeatureSet, split: SplitName, found: RankerScores) -> np.ndarray | None:
    """Calibrated by validation rows, [S, N]; where these are the judged rows, each by those of other users."""
    if found.valid is None:
        return None
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    if split != "valid":
        pairs = zip(found.valid, found.judged, strict=True)
        return np.stack([recalibrated(ALIKE, valid, labels, weights, judged) for valid, judged in pairs])
    users = column(feature_set, "valid", "user")
    halves = [cross_fitted(ALIKE, one, labels, users, weights) for one in found.judged]
    known = [one for one in halves if one is not None]
    return np.stack(known) if len(known) == len(halves) else None


def _metrics(base: Scored, raw_N: np.ndarray, calibrated_N: np.ndarray) -> Metrics:
    """Ranks of the scores as they are, as two curves for two halves of the rows would mix them; the rest calibrated."""
    found = replace(base, scores=raw_N).metrics(intervals=False)
    likely = replace(base, scores=calibrated_N, requests=None).metrics(intervals=False)
    return found | {key: likely[key] for key in PROBABILITIES if key in likely}


def study_table(title: str, judged: Mapping[str, Judged], reference: str) -> Table:
    """Rankers (rows) with AUC, its interval, the paired difference from the reference, and the other metrics.

    The caption says what intervals, stars and probabilities mean here.
    """
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.caption = " ".join(conventions(judged))
    table.add_column("ranker")
    lists = [name for name in LISTS if all(name in found.metrics for found in judged.values())]
    for heading in ("seeds", "AUC", "95 % interval", f"against {reference}", "GAUC", "log loss", "NE", "ECE"):
        table.add_column(heading, justify="right")
    for name in lists:
        table.add_column(LISTS[name], justify="right")
    for heading in ("rows/s", "parameters", "rank ms"):
        table.add_column(heading, justify="right")
    for name, found in judged.items():
        own = found.auc.interval()
        numbers = [f"{found.metrics[key]:.4f}" if key in found.metrics else "" for key in SHOWN]
        numbers += [_with_interval(found.metrics, name) for name in lists]
        table.add_row(
            name.replace("_", " ") + ("" if found.calibrated else " (uncalibrated)"),
            f"{len(found.auc.by_seed)}",
            f"{own.value:.4f}",
            f"{own.low:.4f} – {own.high:.4f}",
            "" if found.difference is None else signed(Interval(*found.difference[:3]), found.resolved),
            *numbers,
            *(_shown(found.facts, key) for key in ("rows_per_second", "parameters", "rank_ms")),
        )
    return table


def conventions(judged: Mapping[str, Judged]) -> list[str]:
    """How the numbers of a study came about, a sentence each."""
    first = next(iter(judged.values()))
    comparisons = sum(found.difference is not None for found in judged.values())
    said = [
        f"Intervals: 95 %, by drawing {first.auc.users:,} users again with all of their rows, and by the spread over "
        "seeds divided by their number; each of one number alone."
    ]
    if any(len(found.auc.by_seed) == 1 for found in judged.values()):
        said.append("A ranker of one seed: its interval holds the luck of users alone, not that of its training.")
    said.append(f"*: p < {LEVEL} after Holm's correction for the {comparisons} differences of this table.")
    said.append(f"Log loss, NE, ECE: every ranker calibrated alike, {ALIKE} by validation rows it is not judged on.")
    return said


def signed(found: Interval, resolved: bool) -> str:
    """A difference with its interval; a star where it is resolved."""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}){' *' if resolved else ''}"


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.4f}"
    return f"{metrics[name]:.4f} ({metrics[f'{name}_low']:.4f} – {metrics[f'{name}_high']:.4f})"


def _shown(facts: Mapping[str, float], key: str) -> str:
    value = facts.get(key)
    if value is None:
        return ""
    return f"{value:.2f}" if key == "rank_ms" else f"{value:,.0f}"
