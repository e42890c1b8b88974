"""The sections of a training report, each an answer to one question about the run."""

from __future__ import annotations

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
    "popularity": "Popularity knows the item's training clicks alone.",
    "optimum": "The optimum knows the true probabilities of a simulated log.",
}
SLICE_METRICS = ("log_loss", "calibration_ratio", "ece")
TOP_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def the_run(record: RunRecord, feature_set: FeatureSet, parameters: int) -> Section:
    """Headline numbers, and the facts that tell this run from another."""
    split = feature_set.judged_by
    preset, manifest, schema = record.config["preset"], feature_set.manifest, feature_set.schema
    best, metric = _best_look(record), preset["train"]["metric"].replace("_", " ")
    vectors = ", ".join(f"{one.name} ({one.width})" for one in schema.vectors)
    listed = {
        "Data": f"{manifest.name}, feature set {manifest.version}",
        **{f"{name.capitalize()} rows": _rows_of(window) for name, window in manifest.windows.items()},
        "Items, users": f"{schema.items - FIRST_VALUE:,} items, {schema.users - FIRST_VALUE:,} users",
        "Item vectors": vectors or "none",
        "Model": f"{preset['model']['architecture']}, {parameters:,} parameters",
        "Seed": str(preset["train"]["seed"]),
        "Training": f"{record.curve[-1]['epoch']:.2f} epochs, {_duration(record.seconds)} from start to weights",
        "Weights": f"of step {best['step']:,.0f}, the best of {len(record.curve)} looks by {metric}",
        "Code": f"git {record.config['git_revision']}",
        "Libraries": ", ".join(f"{name} {number}" for name, number in record.config["versions"].items()),
    }
    return Section(
        "The run",
        f"What was trained on what, and how good is it on the {split} rows?",
        tiles(_headline(record.metrics[split], record.controls)) + facts(listed),
    )


def metrics_and_controls(record: RunRecord, split: str) -> Section:
    """The model beside what it has to beat."""
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
        "Does the model beat what costs less?",
        table(["ranker", "AUC", "95 % interval", *(HEADINGS[key] for key in shown)], rows)
        + remark(
            "AUC: the chance that a positive outranks a negative, its interval draws users again with all of their "
            "rows; GAUC: the same within a user. Log loss: nats a row; "
            "NE: normalized entropy, below 1 where the model beats predicting the training rate for all rows. "
            "Calibration: predicted over observed "
            "positives, 1 is right. ECE: mean distance between promised and observed rates, 0 is right. "
            + " ".join(text for name, text in CONTROLS.items() if name in record.controls)
        )
        + plot(
            control_bars(rankers),
            "controls",
            "A longer bar ranks better; where two whiskers do not overlap, the difference is more than luck.",
        ),
    )


def learning(record: RunRecord) -> Section:
    """The curve of the validation rows."""
    return Section(
        "Learning curves",
        "Had it learned all it could, and did it begin to learn by heart?",
        plot(
            learning_curve(record.curve),
            "learning",
            "Each point is a look at the validation rows, the star the best one; a training loss that goes on falling "
            "while the validation loss rises is overfitting.",
        ),
    )


def ranking(judged: Scored) -> Section:
    """The ROC curve, and what the top of the ranking holds."""
    order = np.argsort(-judged.scores, kind="stable")
    found_N = np.cumsum(judged.labels[order] > 0)
    rows, positives = len(order), int(found_N[-1])
    lines = []
    for share in TOP_SHARES:
        taken = max(1, round(share * rows))
        rate = found_N[taken - 1] / taken
        found = found_N[taken - 1] / positives
        lines.append([f"{share:.0%}", f"{rate:.1%}", f"{rate * rows / positives:.2f}", f"{found:.1%}"])
    return Section(
        "ROC curve",
        "How well does it rank, and what is at the top?",
        beside(
            plot(
                roc_curve(judged.labels, judged.scores, judged.weights),
                "roc",
                "The further the curve bends to the upper left, the fewer negatives stand above the positives; its "
                "area is the AUC.",
            ),
            table(["top of the ranking", "positive", "lift", "of all positives"], lines)
            + remark("All rows in one ranking. Lift: how many times more positives than among all rows."),
        ),
    )


def calibration(judged: Scored) -> Section:
    """The reliability diagram with its summary."""
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
        "Do its probabilities come true?",
        beside(
            plot(
                reliability_diagram(judged.labels, judged.scores, judged.weights),
                "reliability",
                "Each point is a twentieth of the rows: below the dashed line the model promised too much, above it "
                "too little; the histogram says where the rows are.",
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
        "How far apart are positives and negatives?",
        plot(
            score_histogram(judged.labels, judged.scores),
            "scores",
            "Each outline is one class, its heights sum to 1: the less they overlap, the better they are told apart.",
        )
        + table(["quantile of the score", *(f"{share:.0%}" for share in QUANTILES)], lines),
    )


def slices(found: Sequence[SliceResult], whole_auc: float) -> Section:
    """AUC by slice as a plot, and all metrics as a table."""
    by_dimension: dict[str, list[SliceResult]] = {}
    for one in found:
        by_dimension.setdefault("" if one.dimension == "all" else one.dimension, []).append(one)
    ranked = {
        dimension: {one.name: _interval(one.metrics) for one in group if "auc_low" in one.metrics}
        for dimension, group in by_dimension.items()
    }
    # All rows are the plot's dashed line.
    ranked = {dimension: group for dimension, group in ranked.items() if dimension and group}
    rows = {
        dimension: [
            [
                one.name,
                f"{one.rows:,}",
                f"{one.positives / one.rows:.1%}",
                metric_cell(one.metrics, "auc"),
                metric_cell(one.metrics, "interval"),
                *(metric_cell(one.metrics, key) for key in SLICE_METRICS),
            ]
            for one in group
        ]
        for dimension, group in by_dimension.items()
    }
    picture = (
        plot(
            slice_forest(ranked, whole_auc),
            "slices",
            "A slice whose line ends left of the dashed one is ranked worse than all rows together; a long line means "
            "few rows.",
        )
        if ranked
        else ""
    )
    return Section(
        "Slices",
        "For whom and for what does it work less well?",
        picture
        + grouped_table(
            ["slice", "rows", "positive", "AUC", "95 % interval", *(HEADINGS[key] for key in SLICE_METRICS)],
            rows,
        )
        + remark(
            f"Intervals draw users again, with all of their rows; each is of one slice alone. A slice of fewer than "
            f"{FEWEST_ROWS} rows, or of one class, has no AUC, one of fewer than {FEWEST_ROWS_OF_ECE:,} rows no ECE. "
            "Calibration: predicted over observed positives."
        ),
    )


def importance(found: Sequence[Importance]) -> Section:
    """What each input is worth to the model."""
    rows = [[described(one), *_drop_cells(one.drop)] for one in found]
    return Section(
        "Permutation importance",
        "What does the model rely on?",
        plot(
            importance_bars(found),
            "importance",
            "How much AUC is lost when one input is shuffled and all else stays: blue is more than chance, all inputs "
            "considered (Holm), grey may be nothing.",
        )
        + folded("The same as a table", table(["input", "AUC lost", "95 % interval"], rows))
        + remark(
            f"Measured on at most {MOST_ROWS:,} rows. Of two inputs that say the same, each may be missed little; an "
            "input that the model does not read loses exactly 0."
        ),
    )


def settings(config: Mapping[str, Any]) -> Section:
    """Every setting of the run, folded away."""
    preset = config["preset"]
    others = {name: value for name, value in config.items() if name != "preset"}
    return Section(
        "Settings",
        "With which settings was it made?",
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
        "calibration_ratio": "1 is right" + (f"; ECE {metrics['ece']:.4f}" if "ece" in metrics else ""),
    }
    shown = [(names[key], f"{metrics[key]:.4f}", asides[key]) for key in names if key in metrics]
    if "optimum" in controls:
        share = optimal_lift_share(metrics["auc"], controls["optimum"]["auc"])
        shown.append(("Of the optimum", f"{share:.1%}", "of the possible AUC above 0.5"))
    return shown


def _rows_of(window: Window) -> str:
    if not window.labelled or not window.rows:
        return f"{window.rows:,}, without labels"
    return f"{window.rows:,}, {window.positives / window.rows:.2%} positive"


def _best_look(record: RunRecord) -> dict[str, float]:
    metric = record.config["preset"]["train"]["metric"]
    best = min if metric == "log_loss" else max
    return best(record.curve, key=lambda look: look[metric])


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
    """An input that was not read says 0, not +0.0000, which could be very little."""
    if drop == (0, 0, 0):
        return ["0", ""]
    return [f"{drop.value:+.4f}", signed_span(drop)]
