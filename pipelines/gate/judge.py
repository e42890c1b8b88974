"""Holds a bundle against every rule, beside the bundle that serves now, and writes down what was found."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ctr.data.columns import training_rate
from ctr.evaluation.baselines import popularity_scores
from ctr.evaluation.evaluate import evaluate
from ctr.evaluation.metrics import likelihoods
from ctr.evaluation.paired import paired_differences
from ctr.evaluation.slices import Slice, slices
from ctr.serving.bundle import Bundle, BundleManifest, open_bundle
from ctr.serving.ranker import Ranker
from features.errors import ConfigError, DataError, NumericalError, StoreAwayError
from features.monitor.drift.compare import RowSelection, compare
from features.monitor.drift.vectors import other_encoders
from features.monitor.profile.file import PROFILE, load_profile
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet, Window
from pipelines.gate.fresh import FreshRows, fresh_rows, scores_of
from pipelines.gate.measure import latencies
from pipelines.gate.pointers import champion_folder
from pipelines.gate.rules import (
    Scored,
    above_popularity,
    auc_of,
    calibrated,
    enough_rows,
    fast_enough,
    filled_columns,
    finite_scores,
    newer_data,
    not_worse,
    same_encoders,
    slice_findings,
    small_ece,
    small_enough,
    steady_data,
)
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import DRIFT_RULE, Finding, Verdict, verdict_table
from pipelines.workspace import VERDICT, Workspace

SHOWN = ("auc", "auc_low", "auc_high", "gauc_by_samples", "log_loss", "calibration_ratio", "ece")


def judge(bundle: Path, workspace: Workspace, rules: GateRules, console: Console) -> Verdict:
    """Hold a bundle against every rule; print the table, and write the verdict beside the bundles of its name.

    Nothing else changes: no pointer and no alias moves.

    Args:
        bundle: its folder, or a pointer to it.
        workspace: with the feature set that it was trained on, and the champion.
        rules: bounds.
        console: where messages are printed.

    Raises:
        DataError: not a bundle, a changed one, or a raw log that cannot be read.
        ConfigError: its feature set is not in the workspace.
    """
    opened = open_bundle(bundle)
    feature_set = feature_set_of(opened.manifest, workspace)
    with ExitStack() as stack:
        champion, unknown = None, None
        if rules.compare:
            try:
                champion = stack.enter_context(champion_folder(opened.manifest.name, workspace))
            except StoreAwayError as error:
                unknown = str(error)
        verdict = _Gate(opened, feature_set, champion, unknown, workspace, rules).verdict()
    console.print(verdict_table(verdict))
    write_verdict(verdict, opened, workspace)
    return verdict


def write_verdict(verdict: Verdict, bundle: Bundle, workspace: Workspace) -> Path:
    """Write `bundles/<name>/<folder>.gate.json`, beside the bundle, whose own files have fixed hashes; its path."""
    path = workspace.bundles(bundle.manifest.name) / f"{bundle.path.name}{VERDICT}"
    write_text(path, json.dumps({"gate": verdict.as_json()}, indent=2, ensure_ascii=False) + "\n")
    return path


def feature_set_of(manifest: BundleManifest, workspace: Workspace) -> FeatureSet:
    """The feature set that a bundle was trained on. Raises ConfigError where the workspace does not have it."""
    folder = workspace.feature_sets / manifest.name / manifest.feature_set
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: the bundle was trained on this feature set, whose newest rows it is judged by, and it is not "
            "here. Build it again with `quadrank features`, or name the folder that holds it with --work."
        )
    return FeatureSet.open(folder)


@dataclass
class _Gate:
    """One bundle at the gate.

    Args:
        bundle: the challenger, verified.
        feature_set: that it was trained on.
        folder: of the champion; None without one.
        unknown: why it is not known whether there is a champion; None where it is.
        workspace: whose feature sets are compared.
        rules: bounds.
    """

    bundle: Bundle
    feature_set: FeatureSet
    folder: Path | None
    unknown: str | None
    workspace: Workspace
    rules: GateRules

    def verdict(self) -> Verdict:
        """What all rules found; of a bundle that does not load, that alone."""
        manifest = self.bundle.manifest
        findings: list[Finding] = []
        challenger = _loaded(self.bundle, "parity", findings)
        champion = self._champion(findings)
        name = None if self.folder is None else (champion.model_version if champion else self.folder.name)
        if challenger is None:
            return Verdict(manifest.model_version, name, tuple(findings))
        rows = fresh_rows(self.feature_set, self.rules.rows)
        findings.append(enough_rows(rows.label_N, self.rules))
        metrics: dict[str, float] = {}
        if findings[-1].passed:
            found, metrics = self._by_scores(rows, challenger, champion)
            findings += found
        findings += self._by_data(champion)
        challenger_ms, champion_ms = latencies(challenger, champion, self.rules.latency)
        findings.append(fast_enough(challenger_ms, champion_ms, self.rules.latency))
        champion_bytes = None if champion is None else _bytes(champion.bundle.manifest)
        findings.append(small_enough(_bytes(manifest), champion_bytes, self.rules.size))
        return Verdict(manifest.model_version, name, tuple(findings), len(rows.place_N), metrics)

    def _champion(self, findings: list[Finding]) -> Ranker | None:
        """The champion, loaded; where it cannot be, a finding that refuses: nothing can be said against it.

        Where no pointer names one and the registry does not answer, a warning: a job must not wait for MLflow.
        """
        if self.unknown is not None:
            reason = f"compared with nothing: no CURRENT is here, and {self.unknown}"
            findings.append(Finding("champion", False, None, "is known", reason, refuses=False))
        if self.folder is None:
            return None
        try:
            bundle = open_bundle(self.folder)
        except DataError as error:
            findings.append(_no_champion(error))
            return None
        return _loaded(bundle, "champion", findings)

    def _by_scores(
        self, rows: FreshRows, challenger: Ranker, champion: Ranker | None
    ) -> tuple[list[Finding], dict[str, float]]:
        """Rules on the scores of fresh rows, and the metrics of both bundles."""
        findings: list[Finding] = []
        scored = _scored(rows, challenger, champion, findings)
        if scored is None:
            return findings, {}
        rate = training_rate(self.feature_set)
        metrics = _metrics(scored, scored.challenger, rate, "")
        popularity = popularity_scores(self.feature_set, rows.split)[rows.place_N]
        findings.append(above_popularity(metrics["auc"], auc_of(scored, popularity)))
        findings.append(calibrated(metrics["calibration_ratio"], self.rules))
        findings.append(small_ece(likelihoods(scored.labels, scored.challenger, scored.weights).get("ece"), self.rules))
        if scored.champion is not None:
            metrics |= _metrics(scored, scored.champion, rate, "champion.")
            differences = paired_differences(
                scored.labels, scored.challenger, scored.champion, scored.groups, scored.weights, clusters=scored.users
            )
            findings += not_worse(differences)
        of_rows = [
            Slice(one.dimension, one.name, one.rows_N[rows.place_N]) for one in slices(self.feature_set, rows.split)
        ]
        findings += slice_findings(of_rows, scored, self.rules.slices)
        return findings, metrics

    def _by_data(self, champion: Ranker | None) -> list[Finding]:
        """Rules on the data that the bundles were trained on."""
        path, schema = self.feature_set.path, self.feature_set.schema
        ids = (f"item.{schema.item[0].name}", f"user.{schema.user[0].name}")
        findings = [filled_columns(load_profile(path), self.feature_set.judged_by, ids, self.rules)]
        if champion is None:
            return findings
        theirs = champion.bundle.manifest
        findings.append(newer_data(_newest(self.bundle.manifest), _newest(theirs)))
        base = self.workspace.feature_sets / theirs.name / theirs.feature_set
        if (base / PROFILE).is_file():
            findings.append(same_encoders(other_encoders(FeatureSet.open(base), self.feature_set)))
        if self.rules.drift == "ignore" or theirs.feature_set == self.bundle.manifest.feature_set:
            return findings
        if not (base / PROFILE).is_file():
            gone = f"not compared: the champion's feature set {theirs.feature_set} is not here any more"
            findings.append(Finding(DRIFT_RULE, True, None, "", gone))
            return findings
        judged = RowSelection(self.feature_set.judged_by)
        drift = compare(load_profile(base), load_profile(path), base_selection=judged, new_selection=judged)
        command = ["quadrank", "drift", "--base", str(base), "--new", str(path), "--split", self.feature_set.judged_by]
        findings.append(steady_data(drift, ids, self.rules, shlex.join(command)))
        return findings


def _loaded(bundle: Bundle, rule: str, findings: list[Finding]) -> Ranker | None:
    """A bundle's ranker, its golden requests replayed; None and a finding that refuses where they score otherwise."""
    tolerance = bundle.golden().tolerance
    bound = f"golden requests within {tolerance}"
    try:
        ranker = Ranker.of(bundle)
        difference = ranker.replay()
    except NumericalError as error:
        found = Finding(rule, False, None, bound, str(error)) if rule == "parity" else _no_champion(error)
        findings.append(found)
        return None
    findings.append(Finding(rule, True, difference, bound))
    return ranker


def _no_champion(error: Exception) -> Finding:
    reason = (
        f"the champion cannot be asked: {error} Go back to another bundle with `quadrank rollback`, or promote without "
        "a comparison with --set gate.compare=false"
    )
    return Finding("champion", False, None, "loads and replays its golden requests", reason)


def _scored(rows: FreshRows, challenger: Ranker, champion: Ranker | None, findings: list[Finding]) -> Scored | None:
    """Fresh rows with the scores of both; None and a finding that refuses where a score is no probability."""
    try:
        ours = scores_of(challenger, rows)
    except NumericalError as error:
        findings.append(Finding("scores", False, None, "no score outside 0 to 1", str(error)))
        return None
    findings.append(finite_scores(ours))
    if not findings[-1].passed:
        return None
    theirs = None
    if champion is not None:
        try:
            theirs = scores_of(champion, rows)
        except (NumericalError, DataError, ConfigError) as error:
            findings.append(_no_champion(error))
    return Scored(
        labels=rows.label_N.astype(float),
        weights=rows.weight_N,
        users=rows.user_N,
        groups=rows.groups,
        challenger=ours,
        champion=theirs,
    )


def _metrics(scored: Scored, scores: np.ndarray, rate: float, prefix: str) -> dict[str, float]:
    found = evaluate(scored.labels, scores, scored.users, rate, scored.weights)
    return {f"{prefix}{name}": value for name, value in found.items() if name in SHOWN}


def _newest(manifest: BundleManifest) -> Window:
    return max(manifest.windows.values(), key=lambda window: window.last_time)


def _bytes(manifest: BundleManifest) -> int:
    return sum(entry.bytes for entry in manifest.files.values())
