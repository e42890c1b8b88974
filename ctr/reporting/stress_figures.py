"""The picture of a stress test: what each stress costs, one panel a vector set."""

from __future__ import annotations

from matplotlib.figure import Figure

from ctr.diagnosis.vector_stress import StressResult
from ctr.evaluation.significance import resolved
from ctr.reporting.figures import BLUE, GREY

ROW_INCHES = 0.27
# AUC. Losses below it are drawn to scale, larger ones by their logarithm: one collapse must not hide all others.
LINEAR_UP_TO = 0.01


def stress_plot(found: StressResult) -> Figure:
    """Loss of AUC with its interval by stress, the panels beside each other on one axis.

    Blue is a loss (or gain) that is more than chance, all stresses considered (Holm); grey may be chance.
    """
    panels: dict[str, dict[str, int]] = {}
    for place, one in enumerate(found.stresses):
        panels.setdefault(one.sets, {})[one.label] = place
    labels = list(dict.fromkeys(one.label for one in found.stresses))
    figure = Figure(figsize=(2.4 + 3 * len(panels), 1.3 + ROW_INCHES * len(labels)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    more_than_chance = resolved([one.loss for one in found.stresses])
    for axes, (sets, places) in zip(all_axes, panels.items(), strict=True):
        for label, place in places.items():
            loss, row = found.stresses[place].loss, labels.index(label)
            colour = BLUE if more_than_chance[place] else GREY
            axes.plot([loss.low, loss.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(loss.value, row, "o", color=colour, markersize=5)
        ignored = " (ignored)" if sets in found.ignored else ""
        axes.set_title("all sets" if sets == "all" else f"{sets}{ignored}", fontsize=10)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=LINEAR_UP_TO)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="both", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(range(len(labels)), labels)
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    scale = f"logarithmic above {LINEAR_UP_TO:g}; blue: more than chance, after Holm"
    figure.supxlabel(f"loss of AUC, {found.auc:.4f} without stress ({scale})", fontsize=9)
    return figure
