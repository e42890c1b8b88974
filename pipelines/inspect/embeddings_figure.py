"""The figure of an inspection of vector sets."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE, plain
from features.vectors.inspection.report import Inspection, SetReport

TITLE_WIDTH = 105  # characters of the title's size in the width of the figure


def embeddings_figure(found: Inspection, title: str) -> Figure:
    """Recall of the next click at the top; below it, cosines, variance and lengths, a row for each set.

    Args:
        found: what was measured.
        title: the finding, in a sentence.
    """
    sets = len(found.sets)
    heights = (1.5 + 0.65 * sets, 2.5 * sets)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH), x=0.01, ha="left", fontsize=12)
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    _recalls(halves[0].subplots(), found)
    grid = halves[1].subplots(sets, 3, squeeze=False)
    for (cosine_axes, variance_axes, length_axes), report in zip(grid, found.sets, strict=True):
        _cosines(cosine_axes, report)
        _variance(variance_axes, report)
        _lengths(length_axes, report)
    return figure


def _recalls(axes: Axes, found: Inspection) -> None:
    for row, report in enumerate(found.sets):
        for shift, recall, colour in ((-0.18, report.recall, BLUE), (0.18, report.centred_recall, GREEN)):
            if recall is None:
                continue
            whiskers = [[max(recall.value - recall.low, 0)], [max(recall.high - recall.value, 0)]]
            axes.barh(row + shift, recall.value, height=0.32, color=colour, alpha=0.85)
            axes.errorbar(recall.value, row + shift, xerr=whiskers, color="black", capsize=3, linewidth=1)
            times = f"{recall.value / report.random_recall:.1f} × chance"
            axes.annotate(
                times, (recall.high, row + shift), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.vlines(report.random_recall, row - 0.4, row + 0.4, color=ORANGE, linewidth=2)
        axes.plot(report.popular_recall, row, "D", color=GREY, markersize=6)
    axes.set_yticks(range(len(found.sets)), [f"{report.name}\n{report.pairs:,} pairs" for report in found.sets])
    axes.set_ylim(len(found.sets) - 0.5, -0.5)
    shown = [recall.high for report in found.sets for recall in (report.recall, report.centred_recall) if recall]
    axes.set_xlim(0, 1.15 * max([*shown, *(report.popular_recall for report in found.sets), 1e-6]))
    axes.set_xlabel("share of items clicked next that are among the 10 nearest (whiskers: 95 % interval)")
    legend = [
        Line2D([], [], color=BLUE, linewidth=8, label="vectors as given"),
        Line2D([], [], color=GREEN, linewidth=8, label="centred"),
        Line2D([], [], color=ORANGE, linewidth=2, label="10 random items"),
        Line2D([], [], color=GREY, marker="D", linestyle="", label="10 most clicked items"),
    ]
    axes.legend(handles=legend, frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    _plain(axes)


def _cosines(axes: Axes, report: SetReport) -> None:
    random, pair = report.samples.random_cosines, report.samples.pair_cosines
    both = np.concatenate([random, pair])
    low, high = (float(both.min()), float(both.max())) if len(both) else (-1.0, 1.0)
    edges = np.linspace(low - 0.01, high + 0.01, 61).tolist()
    axes.set(title=f"{report.name}: cosines", yticks=[], xlabel="cosine of two items")
    if len(random):
        axes.hist(random, edges, density=True, color=GREY, alpha=0.5, label="random pairs")
    if len(pair):
        axes.hist(pair, edges, density=True, histtype="step", linewidth=1.4, color=BLUE, label="clicked next")
    if len(both):
        left_is_empty = both.mean() > (low + high) / 2
        axes.legend(frameon=False, fontsize=8, loc="upper left" if left_is_empty else "upper right")
    _plain(axes)


def _variance(axes: Axes, report: SetReport) -> None:
    within_W = report.samples.variance_W
    axes.plot(np.arange(1, len(within_W) + 1), within_W, color=BLUE)
    label = f"effective dimension {report.effective_dimension:.1f}"
    axes.axvline(max(report.effective_dimension, 1), color=ORANGE, linestyle="--", linewidth=1)
    axes.set(title=f"{report.name}: {label}", xlabel="principal axes", ylabel="variance explained", ylim=(0, 1.02))
    _plain(axes)


def _lengths(axes: Axes, report: SetReport) -> None:
    # A set of zeros has a length too.
    longest = float(np.max(report.samples.lengths)) or 1.0
    axes.hist(report.samples.lengths, np.linspace(0, 1.05 * longest, 41).tolist(), color=GREY)
    axes.set(title=f"{report.name}: lengths as given", yticks=[], xlabel="Euclidean norm of a vector")
    _plain(axes)


def _plain(axes: Axes) -> None:
    plain(axes, "x")
    axes.title.set_fontsize(10)
