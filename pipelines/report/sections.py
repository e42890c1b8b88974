"""The sections of a training report, each an answer to one question about the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctr.diagnosis.permutation_importance import MOST_ROWS, Importance
from ctr.evaluation.baselines import optimal_lift_share
from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.metrics import FEWEST_ROWS_OF_ECE, calibration_ratio, likelihoods
from ctr.evaluation.slices import FEWEST_ROWS, SliceResult
from ctr.reporting.figures import control_bars, learning_curve, reliability_diagram
from ctr.reporting.run_figures import described, importance_bars, roc_curve, score_histogram, slice_forest
from features.store.feature_set import FeatureSet, Window
from features.store.schema import FIRST_VALUE
from pipelines.cells import HEADINGS, metric_cell, number, signed_span
from pipelines.job.evaluate import Scored
from pipelines.job.summary import Metrics, control_label
from pipelines.report.page import Section
from pipelines.report.parts import beside, facts, folded, grouped_table, plot, remark, table, tiles
from pipelines.report.record import RunRecord

RANKER_METRICS = ("gauc_by_samples", "log_loss", "normalized_entropy", "calibration_ratio", "ece")
CONTROLS = {
    "target_only": "Target-only is the same model without history.",
    "popularity": "Popularity uses the item's training clicks alone.",
    "optimum": "The optimum knows the true probabilities of a simulated log.",
}
SLICE_METRICS = ("log_loss", "calibration_ratio", "ece")
TOP_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def the_run(record: RunRecord, feature_set: FeatureSet, parameters: int) -> Section:
    """The main metrics, and what distinguishes this run from others."""
    split = feature_set.judged_by
    preset, manifest, schema = record.config["preset"], feature_set.manifest, feature_set.schema
    best, metric = _best_evaluation(record), _chosen_by(preset).replace("_", " ")
    vectors = ", ".join(f"{vector_set.name} ({vector_set.width})" for vector_set in schema.vectors)
    listed = {
        "Data": f"{manifest.name}, feature set {manifest.version}",
        **{f"{name.capitalize()} rows": _rows_of(window) for name, window in manifest.windows.items()},
        "Items, users": f"{schema.items - FIRST_VALUE:,} items, {schema.users - FIRST_VALUE:,} users",
        "Item vectors": vectors or "none",
        "Model": f"{preset['model']['architecture']}, {parameters:,} parameters",
        "Seed": str(preset["train"]["seed"]),
        "Training": f"{record.curve[-1]['epoch']:.2f} epochs, {_duration(record.seconds)} from start to weights",
        "Weights": f"of step {best['step']:,.0f}, the best of {len(record.curve)} evaluations by {metric}",
        "Code": f"git {record.config['git_revision']}",
        "Libraries": ", ".join(f"{name} {number}" for name, number in record.config["versions"].items()),
    }
    return Section(
        "The run",
        f"What was trained on what, and how good is it on the {split} rows?",
        tiles(_headline(record.metrics[split], record.controls)) + facts(listed),
    )


def metrics_and_controls(record: RunRecord, split: str) -> Section:
    """The model beside its controls."""
    model = record.config["preset"]["model"]["architecture"]
    rankers = {model: record.metrics[split]}
    rankers |= {control_label(name, found, record.run_id): found for name, found in record.controls.items()}
    shown = [key for key in RANKER_METRICS if any(key in metrics for metrics in rankers.values())]
    rows = [
        [
            name.replace("_", "-"),
            metric_cell(metrics, "auc"),
            metric_cell(metrics, "interval"),
            *(metric_cell(metrics, key) for key in shown),
        ]
        for name, metrics in rankers.items()
    ]
    return Section(
        "Model and controls",
        "Is the model better than cheaper rankers?",
        table(["ranker", "AUC", "95 % interval", *(HEADINGS[key] for key in shown)], rows)
        + remark(
            "AUC: the probability that a positive ranks above a negative; its interval resamples users with all of "
            "their rows. GAUC: AUC within a user. Log loss: nats a row. NE: normalized entropy, below 1 where the "
            "model is better than the training rate predicted for all rows. Calibration: predicted over observed "
            "positives; 1 is best. ECE: mean distance between predicted and observed rates; 0 is best. "
            + " ".join(text for name, text in CONTROLS.items() if name in record.controls)
        )
        + plot(
            control_bars(rankers),
            "controls",
            "A longer bar is a higher AUC. Where two whiskers do not overlap, the difference is significant.",
        ),
    )


def learning(record: RunRecord) -> Section:
    """Losses and metrics of the validation rows during training."""
    return Section(
        "Learning curves",
        "Was training long enough, and did the model begin to overfit?",
        plot(
            learning_curve(record.curve),
            "learning",
            "Each point is an evaluation of the validation rows; the star is the best one. A training loss that falls "
            "while the validation loss rises shows overfitting.",
        ),
    )


def ranking(judged: Scored) -> Section:
    """The ROC curve, and the share of positives at the top of the ranking; rows count by their weight."""
    order = np.argsort(-judged.scores, kind="stable")
    weight_N, score_N = judged.weights[order], judged.scores[order]
    # Rows of equal score are taken together: their stored order says nothing.
    last_T = np.flatnonzero(np.append(score_N[1:] != score_N[:-1], True))
    # From 0 on, by distinct score: of the rows, and of the positives among them.
    of_rows = (weight_N, weight_N * (judged.labels[order] > 0))
    all_T, found_T = (np.append(0, np.cumsum(one)[last_T]) for one in of_rows)
    lines = []
    for share in TOP_SHARES:
        positives = np.interp(share * all_T[-1], all_T, found_T)
        rate, found = positives / (share * all_T[-1]), positives / found_T[-1]
        lines.append([f"{share:.0%}", f"{rate:.1%}", f"{found / share:.2f}", f"{found:.1%}"])
    return Section(
        "ROC curve",
        "How well does the model rank, and how many positives are at the top?",
        beside(
            plot(
                roc_curve(judged.labels, judged.scores, judged.weights),
                "roc",
                "The closer the curve is to the upper left corner, the fewer negatives rank above positives; the area "
                "under it is the AUC.",
            ),
            table(["top of the ranking", "positive", "lift", "of all positives"], lines)
            + remark("All rows are in one ranking. Lift: the share of positives over that of all rows."),
        ),
    )


def calibration(judged: Scored) -> Section:
    """The reliability diagram and its numbers."""
    labels, scores, weights = judged.labels, judged.scores, judged.weights
    rates = {
        "Mean predicted": f"{np.average(scores, weights=weights):.4f}",
        "Observed": f"{np.average(labels, weights=weights):.4f}",
        "In training": f"{judged.base_rate:.4f}",
        "Predicted / observed": f"{calibration_ratio(labels, scores, weights):.4f}",
        "ECE": number(likelihoods(labels, scores, weights).get("ece")) or f"needs {FEWEST_ROWS_OF_ECE:,} rows",
    }
    return Section(
        "Reliability",
        "Do predicted probabilities agree with observed rates?",
        beside(
            plot(
                reliability_diagram(judged.labels, judged.scores, judged.weights),
                "reliability",
                "Each point is a twentieth of the rows: below the dashed line the model predicts too much, above it "
                "too little. The histogram shows how many rows have each prediction.",
            ),
            facts(rates),
        ),
    )


def score_distribution(judged: Scored) -> Section:
    """Scores of positives and negatives."""
    lines = [
        [name, *(f"{value:.4f}" for value in np.quantile(judged.scores[chosen], QUANTILES))]
        for name, chosen in (("positives", judged.labels > 0), ("negatives", judged.labels == 0))
    ]
    return Section(
        "Scores by label",
        "How far apart are the scores of positives and negatives?",
        plot(
            score_histogram(judged.labels, judged.scores),
            "scores",
            "Each outline is one class; its heights sum to 1. The less the outlines overlap, the better the model "
            "separates the classes.",
        )
        + table(["quantile of the score", *(f"{share:.0%}" for share in QUANTILES)], lines),
    )


def slices(found: Sequence[SliceResult], whole_auc: float) -> Section:
    """AUC by slice as a plot, and all metrics as a table."""
    by_dimension: dict[str, list[SliceResult]] = {}
    for part in found:
        by_dimension.setdefault("" if part.dimension == "all" else part.dimension, []).append(part)
    ranked = {
        dimension: {part.name: _interval(part.metrics) for part in group if "auc_low" in part.metrics}
        for dimension, group in by_dimension.items()
    }
    # The plot shows all rows as its dashed line.
    ranked = {dimension: group for dimension, group in ranked.items() if dimension and group}
    rows = {
        dimension: [
            [
                part.name,
                f"{part.rows:,}",
                f"{part.positives / part.rows:.1%}",
                metric_cell(part.metrics, "auc"),
                metric_cell(part.metrics, "interval"),
                *(metric_cell(part.metrics, key) for key in SLICE_METRICS),
            ]
            for part in group
        ]
        for dimension, group in by_dimension.items()
    }
    picture = (
        plot(
            slice_forest(ranked, whole_auc),
            "slices",
            "A slice whose line ends left of the dashed one has a lower AUC than all rows together; a long line means "
            "few rows.",
        )
        if ranked
        else ""
    )
    return Section(
        "Slices",
        "For which users, items and days is the model worse?",
        picture
        + grouped_table(
            ["slice", "rows", "positive", "AUC", "95 % interval", *(HEADINGS[key] for key in SLICE_METRICS)],
            rows,
        )
        + remark(
            f"Intervals resample users with all of their rows; each is for one slice alone. A slice of fewer than "
            f"{FEWEST_ROWS} rows, or of one class, has no AUC, one of fewer than {FEWEST_ROWS_OF_ECE:,} rows no ECE. "
            "Calibration: predicted over observed positives."
        ),
    )


def importance(found: Sequence[Importance]) -> Section:
    """How much the AUC drops without each input."""
    rows = [[described(measured), *_drop_cells(measured.drop)] for measured in found]
    return Section(
        "Permutation importance",
        "Which inputs does the model use?",
        plot(
            importance_bars(found),
            "importance",
            "The AUC drop when one input is shuffled and all others stay. Blue is significant after Holm's correction "
            "for all inputs; grey is within chance.",
        )
        + folded("The same as a table", table(["input", "AUC drop", "95 % interval"], rows))
        + remark(
            f"Measured on at most {MOST_ROWS:,} rows. Of two inputs with the same information, each may have a small "
            "drop; an input that the model does not read has a drop of exactly 0."
        ),
    )


def settings(config: Mapping[str, Any]) -> Section:
    """Every setting of the run, folded."""
    preset = config["preset"]
    others = {name: value for name, value in config.items() if name != "preset"}
    return Section(
        "Settings",
        "Which settings did the run have?",
        "".join(
            folded(name.capitalize(), facts(_flat(values))) for name, values in {**preset, "origin": others}.items()
        ),
    )


def _headline(metrics: Metrics, controls: Mapping[str, Metrics]) -> list[tuple[str, str, str]]:
    names = {"auc": "AUC", "gauc_by_samples": "GAUC", "log_loss": "Log loss", "calibration_ratio": "Calibration"}
    asides = {
        "auc": metric_cell(metrics, "interval"),
        "gauc_by_samples": "AUC within a user",
        "log_loss": f"normalized {metrics['normalized_entropy']:.4f}",
        "calibration_ratio": "1 is best" + (f"; ECE {metrics['ece']:.4f}" if "ece" in metrics else ""),
    }
    shown = [(names[key], f"{metrics[key]:.4f}", asides[key]) for key in names if key in metrics]
    if "optimum" in controls:
        share = optimal_lift_share(metrics["auc"], controls["optimum"]["auc"])
        of_optimum = "none" if math.isnan(share) else f"{share:.1%}"
        shown.append(("Of the optimum", of_optimum, "of the possible AUC above 0.5"))
    return shown


def _rows_of(window: Window) -> str:
    if not window.labelled or not window.rows:
        return f"{window.rows:,}, without labels"
    return f"{window.rows:,}, {window.positives / window.rows:.2%} positive"


def _chosen_by(preset: Mapping[str, Any]) -> str:
    """The metric that chose the weights: of trees alone the log loss, whatever early stopping would watch."""
    return "log_loss" if preset["model"]["tower"] == "none" else str(preset["train"]["metric"])


def _best_evaluation(record: RunRecord) -> dict[str, float]:
    metric = _chosen_by(record.config["preset"])
    best = min if metric == "log_loss" else max
    return best(record.curve, key=lambda evaluation: evaluation[metric])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found


def _interval(metrics: Mapping[str, float]) -> Interval:
    return Interval(metrics["auc"], metrics["auc_low"], metrics["auc_high"])


def _drop_cells(drop: Interval) -> list[str]:
    """An input that was not read shows 0; +0.0000 could be a very small drop. Rows of one user have no interval."""
    if drop == (0, 0, 0):
        return ["0", ""]
    return [f"{drop.value:+.4f}", signed_span(drop) if drop.low < drop.high else ""]
