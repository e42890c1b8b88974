"""Figures of the evaluation and diagnosis of a model: ROC, scores, slices, importance, comparisons, stress.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve as roc_points

from ctr.diagnosis.permutation_importance import Importance
from ctr.diagnosis.vector_stress import StressResult
from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.metrics import auc
from ctr.evaluation.significance import resolved
from ctr.reporting.figures import BLUE, GREY, ORANGE, name_rows, plain, whisker

ROW_INCHES = 0.27
# The axis of AUC drops is linear up to here and logarithmic beyond: one large drop must not hide the others.
LINEAR_UP_TO = 0.01


def roc_curve(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Figure:
    """ROC curve: share of positives against share of negatives above each threshold.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
        weights: row weights, [N]; none means ones.
    """
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    axes = figure.subplots()
    false_T, true_T, _ = roc_points(labels, scores, sample_weight=weights)
    # A curve of millions of rows would take megabytes; a thousandth of the axis is less than the line's width.
    share = np.linspace(0, 1, 1001)
    axes.fill_between(share, np.interp(share, false_T, true_T), share, color=BLUE, alpha=0.08, linewidth=0)
    axes.plot(share, np.interp(share, false_T, true_T), color=BLUE, linewidth=1.8, label="model")
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="chance")
    axes.set(
        title=f"AUC {auc(labels, scores, weights):.4f}",
        xlabel="share of negatives ranked above the threshold",
        ylabel="share of positives ranked above it",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    plain(axes)
    return figure


def score_histogram(labels: np.ndarray, scores: np.ndarray) -> Figure:
    """Distribution of the probabilities of positives and of negatives, each as shares of its class.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    # As in the reliability diagram, a single high score must not compress the others.
    edges = np.linspace(0, min(1.0, 1.05 * float(np.quantile(scores, 0.999))), 51)
    inside = np.minimum(scores, edges[-1])
    for name, chosen, colour in (("negatives", labels == 0, GREY), ("positives", labels > 0, BLUE)):
        share, _ = np.histogram(inside[chosen], edges)
        share = share / chosen.sum()
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, edges, color=colour, linewidth=1.4, label=f"{name}, {int(chosen.sum()):,} rows")
        axes.axvline(float(scores[chosen].mean()), color=colour, linestyle=":", linewidth=1.4)
    axes.set(xlabel="predicted probability (dotted: mean of the class)", ylabel="share of the class")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    plain(axes, "y")
    return figure


def slice_forest(slices: Mapping[str, Mapping[str, Interval]], whole: float) -> Figure:
    """AUC and interval of each slice, under the name of its dimension.

    Args:
        slices: AUC by slice name, by dimension, in the order of the plot.
        whole: AUC of all rows, drawn as a vertical line.
    """
    rows: list[tuple[str, Interval | None]] = []
    for dimension, found in slices.items():
        rows += [(dimension, None), *found.items()]
    figure = Figure(figsize=(7.6, 0.9 + ROW_INCHES * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, (_, value) in enumerate(rows):
        if value is not None:
            whisker(axes, row, value, BLUE)
    axes.axvline(whole, color=ORANGE, linewidth=1, linestyle="--")
    axes.annotate(
        f"all rows {whole:.4f}",
        (whole, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=ORANGE,
    )
    name_rows(axes, [name for name, _ in rows])
    for label, (_, value) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if value is not None else "bold")
    axes.set_xlabel("AUC (line: 95 % interval)")
    return figure


def importance_bars(importances: Sequence[Importance]) -> Figure:
    """The AUC drop of each input, with its interval; grey if it is not significant after Holm's correction.

    Args:
        importances: in the order of the plot, the first on top.
    """
    figure = Figure(figsize=(7.6, 0.9 + ROW_INCHES * len(importances)), layout="constrained")
    axes = figure.subplots()
    more_than_chance = _judged([one.drop for one in importances])
    for row, one in enumerate(importances):
        colour = BLUE if more_than_chance[row] else GREY
        axes.barh(row, one.drop.value, color=colour, alpha=0.35, height=0.66)
        whisker(axes, row, one.drop, colour)
    axes.axvline(0, color="black", linewidth=1)
    name_rows(axes, [described(one) for one in importances])
    axes.set_xlabel("AUC drop when shuffled (line: 95 % interval)")
    return figure


def described(one: Importance) -> str:
    """The label of an input: `year (item)`, `text (vectors)`, `whole history`."""
    return "whole history" if one.side == "history" else f"{one.name} ({one.side})"


def ranker_forest(rankers: Mapping[str, Interval], label: str, marked: str | None = None) -> Figure:
    """A value and its interval for each ranker of a study.

    Args:
        rankers: value and interval by name, in the order of the plot, the first on top.
        label: of the horizontal axis.
        marked: a ranker drawn in colour, with a line through its value.
    """
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(rankers)), layout="constrained")
    axes = figure.subplots()
    for row, (name, found) in enumerate(rankers.items()):
        whisker(axes, row, found, BLUE if name == marked else GREY)
    if marked is not None:
        axes.axvline(rankers[marked].value, color=BLUE, linewidth=0.8, linestyle=":")
    name_rows(axes, [name.replace("_", " ") for name in rankers])
    axes.set_xlabel(label)
    return figure


def stress_plot(found: StressResult) -> Figure:
    """AUC drop and its interval of each corruption, one panel for each vector set, on one axis.

    Blue drops (or gains) are significant after Holm's correction for all corruptions; grey ones are not.
    """
    panels: dict[str, dict[str, int]] = {}
    for place, one in enumerate(found.stresses):
        panels.setdefault(one.sets, {})[one.label] = place
    labels = list(dict.fromkeys(one.label for one in found.stresses))
    figure = Figure(figsize=(2.4 + 3 * len(panels), 1.3 + ROW_INCHES * len(labels)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    more_than_chance = _judged([one.auc_drop for one in found.stresses])
    for axes, (sets, places) in zip(all_axes, panels.items(), strict=True):
        for label, place in places.items():
            drop, row = found.stresses[place].auc_drop, labels.index(label)
            colour = BLUE if more_than_chance[place] else GREY
            whisker(axes, row, drop, colour)
        ignored = " (ignored)" if sets in found.ignored else ""
        axes.set_title("all sets" if sets == "all" else f"{sets}{ignored}", fontsize=10)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=LINEAR_UP_TO)
        axes.xaxis.set_major_formatter("{x:g}")
        plain(axes)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    scale = f"logarithmic above {LINEAR_UP_TO:g}; blue: significant after Holm's correction"
    figure.supxlabel(f"AUC drop, from {found.auc:.4f} without corruption ({scale})", fontsize=9)
    return figure


def _judged(drops: Sequence[Interval]) -> list[bool]:
    """Which drops are significant; none without a width, since no resample varies the rows of a single user."""
    return [found and one.low < one.high for found, one in zip(resolved(drops), drops, strict=True)]
