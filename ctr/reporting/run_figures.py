"""The pictures of a run's report: ROC curve, scores by label, slices, and what each input is worth.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve as roc_points

from ctr.diagnosis.permutation_importance import Importance
from ctr.evaluation.metrics import Interval, auc
from ctr.evaluation.significance import resolved
from ctr.reporting.figures import BLUE, GREY, ORANGE

ROW_INCHES = 0.27


def roc_curve(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Figure:
    """Positives found against negatives shown on the way down the ranking.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
        weights: row weights, [N]; none means ones.
    """
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    axes = figure.subplots()
    false_T, true_T, _ = roc_points(labels, scores, sample_weight=weights)
    # Rows by the million would be a megabyte of curve; a thousandth of the axis is less than the line is wide.
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
    _plain(axes, "both")
    return figure


def score_histogram(labels: np.ndarray, scores: np.ndarray) -> Figure:
    """Where the probabilities of positives and of negatives lie, each as a share of its own class.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    # As in the reliability diagram, a single far score must not squeeze the rest into a corner.
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
    _plain(axes, "y")
    return figure


def slice_forest(slices: Mapping[str, Mapping[str, Interval]], whole: float) -> Figure:
    """AUC and interval of each slice, under the name of its dimension.

    Args:
        slices: AUC by slice name, by dimension, in the order of the plot.
        whole: AUC of all rows; a line through it leads the eye.
    """
    places: list[tuple[str, Interval | None]] = []
    for dimension, found in slices.items():
        places += [(dimension, None), *found.items()]
    figure = Figure(figsize=(7.6, 0.9 + ROW_INCHES * len(places)), layout="constrained")
    axes = figure.subplots()
    for place, (_, value) in enumerate(places):
        if value is not None:
            _whisker(axes, place, value, BLUE)
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
    _name_rows(axes, [_text(name) for name, _ in places])
    for label, (_, value) in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("normal" if value is not None else "bold")
    axes.set_xlabel("AUC (line: 95 % interval)")
    return figure


def importance_bars(importances: Sequence[Importance]) -> Figure:
    """The AUC lost without each input, with its interval; grey where all of them may be chance (Holm).

    Args:
        importances: in the order of the plot, top first.
    """
    figure = Figure(figsize=(7.6, 0.9 + ROW_INCHES * len(importances)), layout="constrained")
    axes = figure.subplots()
    more_than_chance = resolved([one.drop for one in importances])
    for place, one in enumerate(importances):
        colour = BLUE if more_than_chance[place] else GREY
        axes.barh(place, one.drop.value, color=colour, alpha=0.35, height=0.66)
        _whisker(axes, place, one.drop, colour)
    axes.axvline(0, color="black", linewidth=1)
    _name_rows(axes, [_text(described(one)) for one in importances])
    axes.set_xlabel("AUC lost when shuffled (line: 95 % interval)")
    return figure


def described(one: Importance) -> str:
    """An input as a reader names it: `year (item)`, `text (vectors)`, `whole history`."""
    return "whole history" if one.side == "history" else f"{one.name} ({one.side})"


def _whisker(axes: Axes, place: int, value: Interval, colour: str) -> None:
    axes.plot([value.low, value.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(value.value, place, "o", color=colour, markersize=4.5)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    _plain(axes, "x")
    axes.spines["left"].set_visible(False)


def _text(name: str) -> str:
    """A name as it is: matplotlib reads dollar signs as mathematics. A long one is cut."""
    cut = name if len(name) <= 40 else f"{name[:39]}…"
    return cut.replace("$", r"\$")


def _plain(axes: Axes, grid: Literal["both", "x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
