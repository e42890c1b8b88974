"""The picture of a study: each ranker's AUC with its interval, best on top."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ctr.evaluation.metrics import Interval
from ctr.reporting.figures import BLUE, GREY


def forest(rankers: Mapping[str, Interval], label: str, marked: str | None = None) -> Figure:
    """A point and a line a ranker.

    Args:
        rankers: value and interval by name, in the order of the plot, top first.
        label: of the horizontal axis.
        marked: one of them that stands out; a line through its value leads the eye.
    """
    figure = Figure(figsize=(8, 0.9 + 0.32 * len(rankers)), layout="constrained")
    axes = figure.subplots()
    for place, (name, found) in enumerate(rankers.items()):
        colour = BLUE if name == marked else GREY
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(found.value, place, "o", color=colour, markersize=5)
    if marked is not None:
        axes.axvline(rankers[marked].value, color=BLUE, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rankers)), [name.replace("_", " ") for name in rankers])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
