"""The rules on scores and data: each holds one figure against one bound, and says what is wrong where it does not hold.

Comparisons are written so that NaN never passes.

Shapes: N fresh rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ctr.evaluation.bootstrap import Interval, auc_interval, paired_difference
from ctr.evaluation.metrics import auc, calibration_ratio
from ctr.evaluation.paired import AUC, GROUP_AUC, LOG_LOSS
from ctr.evaluation.significance import resolved
from ctr.evaluation.slices import Slice
from features.monitor.drift.compare import Drift
from features.monitor.profile.file import Profile
from features.store.feature_set import SplitName, Window
from pipelines.gate.settings import GateRules, LatencyRules, SizeRules, SliceRules
from pipelines.gate.verdict import DRIFT_RULE, Finding, worst

ROUNDING = 1e-5  # by which summation order moves a metric; a bundle beside its own copy must pass
MIB = 2**20
NAMES = {AUC: "AUC", GROUP_AUC: "AUC within requests", LOG_LOSS: "log loss"}
HOUR = 3_600_000_000  # µs
MOST_NAMED = 3


@dataclass(frozen=True)
class Scored:
    """Fresh rows with the scores of both bundles; arrays are [N].

    Args:
        labels: 0 or 1.
        weights: above 0.
        users: of each row.
        groups: request of each row, or its user.
        challenger: probabilities.
        champion: probabilities; None without a champion.
    """

    labels: np.ndarray
    weights: np.ndarray
    users: np.ndarray
    groups: np.ndarray
    challenger: np.ndarray
    champion: np.ndarray | None = None

    def part(self, rows_N: np.ndarray) -> Scored:
        """Some of the rows, bool [N]."""
        return Scored(
            self.labels[rows_N],
            self.weights[rows_N],
            self.users[rows_N],
            self.groups[rows_N],
            self.challenger[rows_N],
            None if self.champion is None else self.champion[rows_N],
        )


def enough_rows(labels: np.ndarray, rules: GateRules) -> Finding:
    """Fresh rows of both labels, and at least `clicks` of each: less says nothing of a model."""
    positives = int((labels > 0).sum())
    fewest = min(positives, len(labels) - positives)
    reason = (
        f"{len(labels):,} fresh rows, {positives:,} of them positive: too few to judge by. Enlarge the test share of "
        "`split`, or lower gate.clicks"
    )
    return _finding("fresh rows", fewest >= rules.clicks, fewest, f"at least {rules.clicks} of each label", reason)


def finite_scores(scores: np.ndarray) -> Finding:
    """Every score is a probability."""
    wrong = ~((scores >= 0) & (scores <= 1))
    lost = int(wrong.sum())
    example = f", e.g. {scores[wrong][0]}" if lost else ""
    reason = f"{lost:,} of {len(scores):,} scores are no probabilities{example}. Train again"
    return _finding("scores", not lost, lost, "no score outside 0 to 1", reason)


def newer_data(challenger: Window, champion: Window) -> Finding:
    """The challenger's data ends no earlier than the champion's."""
    hours = (champion.last_time - challenger.last_time) / HOUR
    reason = (
        f"its data ends {hours:.1f} h before the champion's. Train on newer data; to go back to an older bundle on "
        "purpose, use `quadrank rollback`"
    )
    return _finding("freshness", hours <= 0, hours, "not behind the champion's data", reason)


def above_popularity(challenger: float, popularity: float) -> Finding:
    """AUC above that of the items' click rates, on the same rows."""
    reason = f"test AUC {challenger:.4f} is not above popularity's {popularity:.4f}"
    return _finding("popularity", challenger > popularity, challenger, f"above {popularity:.4f}", reason)


def calibrated(ratio: float, rules: GateRules) -> Finding:
    """Predicted over observed positives, near 1."""
    low, high = rules.calibration.low, rules.calibration.high
    reason = f"calibration ratio {ratio:.3f} is outside {low} to {high}"
    return _finding("calibration", low <= ratio <= high, ratio, f"{low} to {high}", reason)


def small_ece(error: float | None, rules: GateRules) -> Finding:
    """The mean distance of scores and rates by bin; None of fewer than 1,000 rows."""
    bound = f"at most {rules.ece}"
    if error is None:
        return Finding("ece", True, None, bound, "not measured: fewer than 1,000 fresh rows")
    return _finding("ece", error <= rules.ece, error, bound, f"calibration error {error:.3f} is above {rules.ece}")


def not_worse(differences: Mapping[str, Interval]) -> list[Finding]:
    """A finding a metric: what the challenger loses against the champion on the same rows is within the noise.

    A loss is beyond noise where it is significant at 5 % for all metrics together, by Holm's correction: else a model
    that is as good as the champion would be refused one day in ten.
    """
    measured = {name: one for name, one in differences.items() if np.isfinite(one).all()}
    certain = dict(zip(measured, resolved(list(measured.values())), strict=True))
    found = []
    for name in (AUC, GROUP_AUC, LOG_LOSS):
        if name not in differences:
            # No list has both labels, so no order of lists can be lost.
            found.append(Finding(NAMES[name], True, None, "", "not measured: no request has both labels"))
            continue
        value, low, high = differences[name]
        loss = value if name == LOG_LOSS else -value
        holds = name in measured and (loss <= ROUNDING or not certain[name])
        reason = f"{value:+.4f} ({low:+.4f} to {high:+.4f}) against the champion on the same rows: worse beyond noise"
        bound = f"not {'above' if name == LOG_LOSS else 'below'} 0 beyond noise"
        found.append(_finding(NAMES[name], holds, value, bound, reason))
    return found


def slice_findings(slices: Sequence[Slice], scored: Scored, rules: SliceRules) -> list[Finding]:
    """A finding for each slice that is broken; one that says so where none is.

    A slice is broken where its AUC is below `auc`, or lower than the champion's by more than `lost_auc`, both beyond
    noise (5 % for all slices together, by Holm's correction); or where its calibration ratio is out of bounds.

    Args:
        slices: of the fresh rows; those of too few rows are passed over.
        scored: the rows.
        rules: bounds.
    """
    judged = [(one, scored.part(one.rows_N)) for one in slices if int(one.rows_N.sum()) >= rules.rows]
    found = [_slice_calibration(one, part, rules) for one, part in judged if part.labels.sum() >= rules.clicks]
    ranked = [(one, part) for one, part in judged if _can_rank(part)]
    below = [_interval(part, rules.auc) for _, part in ranked]
    for (one, _), interval, is_certain in zip(ranked, below, resolved(below), strict=True):
        value = interval.value + rules.auc
        reason = f"{_name(one)}: AUC {value:.4f} is below {rules.auc}"
        holds = value >= rules.auc or not is_certain
        found.append(_finding("slice AUC", holds and math.isfinite(value), value, f"at least {rules.auc}", reason))
    compared = [(one, part) for one, part in ranked if part.champion is not None]
    lost = [_difference(part) for _, part in compared]
    for (one, _), interval, is_certain in zip(compared, lost, resolved(lost), strict=True):
        value = interval.value
        reason = f"{_name(one)}: AUC {value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f}) against the champion"
        holds = value >= -rules.lost_auc or not is_certain
        bound = f"loses at most {rules.lost_auc}"
        found.append(_finding("slice loss", holds and math.isfinite(value), value, bound, reason))
    return worst(found, "slices", f"of {rules.rows:,} rows or more")


def filled_columns(profile: Profile, split: SplitName, ids: Sequence[str], rules: GateRules) -> Finding:
    """No column lacks more values in the fresh rows than in training, nor do items lack more vectors.

    Args:
        profile: of the challenger's feature set.
        split: of the fresh rows.
        ids: columns whose values are new every day and missing in no table: those of ids.
        rules: bound of the rise.
    """
    before, now = profile.splits.get("train"), profile.splits.get(split)
    bound = f"rises by at most {rules.missing}"
    if before is None or now is None:
        return Finding("missing", False, None, bound, f"the profile has no {split} rows. Build the feature set again")
    rise = {
        name: column.missing_share - before.columns[name].missing_share
        for name, column in now.columns.items()
        if name in before.columns and name not in ids
    }
    rise |= {
        f"vectors.{name}": before.vectors[name].rows - coverage.rows
        for name, coverage in now.vectors.items()
        if name in before.vectors
    }
    rise |= {name: 1.0 for name in before.columns if name not in now.columns and name not in ids}
    broken = sorted((name for name in rise if not rise[name] <= rules.missing), key=lambda name: -rise[name])
    named = ", ".join(f"{name} (+{rise[name]:.1%})" for name in broken[:MOST_NAMED])
    more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    reason = f"missing more often than in training: {named}{more}. Look at the tables that they come from"
    return _finding("missing", not broken, max(rise.values(), default=0.0), bound, reason)


def same_encoders(turned: Sequence[str]) -> Finding:
    """The vectors of items that champion and challenger know are of the encoder that the contract names.

    Args:
        turned: vector sets of another encoder whose `version` says that it is the same.
    """
    reason = (
        f"{', '.join(turned)}: most items have other vectors than the champion's, and `version` is the same. Bring the "
        "vectors of that encoder back, or name the new one in embeddings.SET.version"
    )
    return _finding("vectors", not turned, len(turned), "of the encoder that their version names", reason)


def steady_data(drift: Drift, ids: Sequence[str], rules: GateRules, command: str) -> Finding:
    """The challenger's data is distributed as the champion's; a warning unless `drift` is `refuse`.

    Args:
        drift: of its fresh rows against those of the champion's data.
        ids: columns that are passed over: ids come and go every day.
        rules: whether drift refuses.
        command: it compares the same rows, and shows each column.
    """
    columns = [one.column for one in drift.columns if one.alarm and one.column not in ids]
    named = ", ".join(columns[:MOST_NAMED]) + (" …" if len(columns) > MOST_NAMED else "")
    reason = f"drift in {len(columns)} of {len(drift.columns)} columns: {named}. `{command}` shows how much"
    found = _finding(DRIFT_RULE, not columns, len(columns), "no column drifts from the champion's data", reason)
    return Finding(DRIFT_RULE, found.passed, found.figure, found.bound, found.reason, rules.drift == "refuse")


def fast_enough(challenger_ms: float, champion_ms: float | None, rules: LatencyRules) -> Finding:
    """The median time of a request is not far above the champion's, and below a ceiling."""
    # The champion's first: of a time that is no number `min` keeps it, and nothing is below it.
    most = rules.ms if champion_ms is None else min(champion_ms * rules.ratio + rules.slack_ms, rules.ms)
    beside = "" if champion_ms is None else f", the champion's {champion_ms:.2f} ms"
    reason = f"a request of {rules.candidates} candidates takes {challenger_ms:.2f} ms{beside}: at most {most:.2f} ms"
    return _finding("latency", challenger_ms <= most, challenger_ms, f"at most {most:.2f} ms", reason)


def small_enough(challenger_bytes: int, champion_bytes: int | None, rules: SizeRules) -> Finding:
    """The bundle is not far larger than the champion's, and below a ceiling."""
    size = challenger_bytes / MIB
    most = rules.mib
    if champion_bytes is not None:
        most = min(most, champion_bytes / MIB * rules.ratio + rules.slack_mib)
    reason = f"{size:.1f} MiB, at most {most:.1f} MiB"
    return _finding("size", size <= most, size, f"at most {most:.1f} MiB", reason)


def _finding(rule: str, holds: bool, figure: float, bound: str, reason: str) -> Finding:
    return Finding(rule, bool(holds), float(figure), bound, "" if holds else reason)


def _name(one: Slice) -> str:
    return f"{one.dimension}, {one.name}"


def _can_rank(part: Scored) -> bool:
    return 0 < part.labels.sum() < len(part.labels) and len(np.unique(part.users)) > 1


def _slice_calibration(one: Slice, part: Scored, rules: SliceRules) -> Finding:
    ratio = calibration_ratio(part.labels, part.challenger, part.weights)
    reason = f"{_name(one)}: calibration ratio {ratio:.3f} is outside {rules.low} to {rules.high}"
    bound = f"{rules.low} to {rules.high}"
    return _finding("slice calibration", rules.low <= ratio <= rules.high, ratio, bound, reason)


def _interval(part: Scored, least: float) -> Interval:
    """AUC less its floor."""
    value, low, high = auc_interval(part.labels, part.challenger, part.weights, clusters=part.users)
    return Interval(value - least, low - least, high - least)


def _difference(part: Scored) -> Interval:
    assert part.champion is not None
    if np.array_equal(part.challenger, part.champion):
        return Interval(0.0, 0.0, 0.0)
    return paired_difference(part.labels, part.challenger, part.champion, part.weights, clusters=part.users)


def auc_of(scored: Scored, scores: np.ndarray) -> float:
    """Weighted AUC of some scores of the fresh rows."""
    return auc(scored.labels, scores, scored.weights)
