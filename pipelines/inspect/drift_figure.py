"""The figure of a drift check: shares of both feature sets, for the columns that changed most."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctr.reporting.figures import GREY, ORANGE, as_written, plain
from features.monitor.drift.compare import ColumnDrift, Drift

PANELS = 6
BARS = 10
LONGEST = 24  # characters of a bin's name
LINES = 5  # a panel is at least as high as this many bars


def drift_figure(drift: Drift) -> Figure:
    """Shares in the base and in the new feature set, a panel for each of the columns that changed most."""
    drawn = [column for column in drift.columns if _bars(column)][:PANELS]
    shown = [column for column in drawn if column.alarm] or drawn
    lines = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 0.6 + 2.9 * max(lines, 1)), layout="constrained")
    for panel, column in enumerate(shown):
        _panel(figure.add_subplot(max(lines, 1), 2, panel + 1), column)
    figure.suptitle("What changed most: shares of the base and of the new feature set", fontsize=11)
    return figure


def _panel(axes: Axes, column: ColumnDrift) -> None:
    bars = _bars(column)
    for offset, side, colour in ((-0.2, 1, GREY), (0.2, 2, ORANGE)):
        rows = [row + offset for row in range(len(bars))]
        axes.barh(rows, [bar[side] for bar in bars], height=0.38, color=colour, label=("base", "new")[side - 1])
    axes.set_yticks(range(len(bars)), [as_written(bar[0], LONGEST) for bar in bars], fontsize=8)
    axes.set_ylim(max(len(bars), LINES) - 0.5, -0.5)
    psi = column.change("psi")
    found = f"{column.verdict}, PSI {psi.size:.2f}" if psi else column.verdict
    axes.set_title(f"{as_written(column.column)}: {found}", fontsize=10)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    plain(axes, "x")
    axes.legend(frameon=False, fontsize=8)


def _bars(column: ColumnDrift) -> list[tuple[str, float, float]]:
    """Name and both shares of the bins that differ most, in the bins' order, then of single shares; no empty ones."""
    bars: list[tuple[str, float, float]] = []
    if column.common is not None:
        base, new = column.common.base.shares, column.common.new.shares
        largest = sorted(abs(new - base).argsort()[::-1][:BARS].tolist())
        bars = [(column.common.names[i], float(base[i]), float(new[i])) for i in largest]
    bars += [
        (change.measure.replace("_", " "), change.base, change.new)
        for change in column.changes
        if change.base is not None and change.new is not None
    ]
    return [bar for bar in bars if bar[1] or bar[2]]
