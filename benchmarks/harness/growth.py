"""The picture of cost over size: seconds and peak memory of a build as its input grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctr.reporting.figures import BLUE, GREY, ORANGE


def growth(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds and peak MiB over rows, all axes logarithmic, beside a linear and a constant cost.

    Args:
        results: of one thing, by rising `rows`; with `seconds` and `peak_mib`. The dashed lines start at the first.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    rows, seconds, peaks = ([result[key] for result in results] for key in ("rows", "seconds", "peak_mib"))
    linear = [seconds[0] * count / rows[0] for count in rows]
    _draw(time_axes, rows, seconds, BLUE, linear, "linear in rows")
    _draw(memory_axes, rows, peaks, ORANGE, [peaks[0]] * len(rows), "constant")
    time_axes.set(title="Wall time", ylabel="seconds")
    # Room on both sides: the eye must not make a mountain of a tenth.
    memory_axes.set(title="Peak resident memory", ylabel="MiB", ylim=(min(peaks) / 3, max(peaks) * 3))
    return figure


def _draw(
    axes: Axes, rows: Sequence[int], values: Sequence[float], colour: str, ideal: Sequence[float], ideal_name: str
) -> None:
    axes.loglog(rows, values, "o-", color=colour, markersize=4, label="measured")
    axes.loglog(rows, ideal, "--", color=GREY, linewidth=1, label=ideal_name)
    axes.set_xlabel("rows of the log")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
